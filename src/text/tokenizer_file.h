// The published tokenizer.json, read strictly into plain data. Owns what such a file may say:
// byte-level BPE as Qwen2 and MiMo publish it, and nothing else. Knows no text to encode.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/bpe.h"

namespace tessera {

struct AddedToken {
    std::string text;
    uint32_t id = 0;
    bool special = false;
};

struct TokenizerFile {
    std::vector<std::string> tokens;  // the bytes of each id; empty where the file leaves a gap
    std::array<uint32_t, 256> byte_ids{};
    std::vector<Merge> merges;  // by rank
    std::vector<AddedToken> added;
    std::optional<std::string> pattern;  // none: the whole text is one word
    bool nfc = false;
    bool ignore_merges = false;  // a word that is a token needs no merging
};

// Throws Error naming `source`, the key, the value found and what was expected. Memory stays within
// a small multiple of the file: ids may leave gaps, but no more than a few for each token.
TokenizerFile read_tokenizer_file(std::string_view json, std::string_view source);

}  // namespace tessera
