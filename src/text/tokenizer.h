// Text to token ids and back, from a published tokenizer.json. Owns the order of the steps: added
// tokens, normalisation, words, merges. Knows no chat dialect and no model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/added.h"
#include "text/bpe.h"
#include "text/split.h"
#include "text/tokenizer_file.h"

namespace tessera {

// What the spelling of an added token ("<|im_end|>", "<think>") means in a text.
enum class Specials {
    kAsText,  // nothing: it is text like any other. Whatever a user wrote is encoded so
    kParse,   // the token. Only for text that the caller itself composed
};

// Immutable after loading: one Tokenizer serves any number of threads.
class Tokenizer {
  public:
    // Reads a tokenizer.json: byte-level BPE as Qwen2 and MiMo publish it. Throws Error naming the
    // file, and the key with the value found and the one expected, for anything else.
    static Tokenizer load(const std::filesystem::path& path);

    // The same from memory; `source` is what errors call it.
    static Tokenizer parse(std::string_view json, std::string_view source);

    // The ids of `text`; no token is added at either end. Never throws, whatever the bytes: each
    // ill-formed part of the UTF-8 is read as U+FFFD (see utf8.h), so decoding gives back
    // NFC(repaired text). Time is O(n log n) in the longest word, linear in everything else.
    std::vector<uint32_t> encode(std::string_view text, Specials specials) const;

    // The bytes that `id` stands for, a view into the tokenizer: perhaps part of a character. For
    // an added token its spelling. Empty for ids that the file leaves out or that are too large.
    std::string_view token_bytes(uint32_t id) const;

    // True for added tokens that the file calls special; <think> and <tool_call> are often not.
    bool is_special(uint32_t id) const;

    // The id whose bytes are `bytes`; an added token goes first. None if there is no such token.
    std::optional<uint32_t> id_of(std::string_view bytes) const;

    // The id of the added token spelt `text`: a marker that no text encoded kAsText can produce.
    std::optional<uint32_t> added_id_of(std::string_view text) const { return added_.id_of(text); }

    // One more than the largest id. A model's own vocabulary may be padded beyond it.
    uint32_t vocab_size() const { return static_cast<uint32_t>(tokens_.size()); }

  private:
    explicit Tokenizer(TokenizerFile file, std::string_view source);

    void encode_plain(std::string_view text, std::vector<uint32_t>& out) const;
    void encode_word(std::string_view word, std::vector<uint32_t>& out) const;

    std::vector<std::string> tokens_;
    std::vector<bool> special_;
    std::vector<uint32_t> by_bytes_;  // open addressing over tokens_: id + 1, 0 for a free slot
    AddedTokens added_;
    Bpe bpe_;
    std::optional<Splitter> splitter_;
    bool nfc_;
    bool ignore_merges_;
};

}  // namespace tessera
