// A loaded model: immutable, shared by any number of sessions and threads. The door of the engine:
// whoever stands here sees text and tokens, no tensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/sampling.h"
#include "text/chat.h"
#include "text/detokenizer.h"

namespace tessera {

using Token = uint32_t;

struct LoadOptions {
    uint32_t threads = 0;  // for reading; 0: all that the process may use
    std::function<void(uint64_t done, uint64_t total)> progress;  // bytes; one thread at a time
};

struct ModelInfo {
    std::string summary;            // one line: the shape in the terms of its config, and the bytes
    uint32_t context_tokens;        // prompt and answer together
    uint32_t vocab;                 // of the logits; the tokenizer's may be smaller
    uint64_t weight_bytes;          // as stored
    std::vector<Token> end_tokens;  // any of these ends an answer
    Sampling recommended;           // of generation_config.json
};

class Model {
  public:
    // Reads a Hugging Face folder. Throws Error: not a checkpoint, incomplete, a tensor that does
    // not fit the config, not enough memory.
    static Model load(const std::filesystem::path& folder, const LoadOptions& options = {});

    const ModelInfo& info() const;
    bool is_end(Token token) const;

    // The tokens of a text; spellings of special tokens in it are text.
    std::vector<Token> encode(std::string_view text) const;

    // The tokens of a conversation in the model's dialect. Throws Error if the tokenizer lacks it.
    std::vector<Token> encode_chat(std::span<const Turn> turns, const OrderedJson& tools = nullptr,
                                   const RenderOptions& options = {}) const;

    // Turns tokens into text as they come; must not outlive the model.
    Detokenizer detokenizer(ShowSpecials specials = ShowSpecials::kSkip) const;

  private:
    friend class Session;
    struct Parts;
    explicit Model(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}

    std::shared_ptr<const Parts> parts_;
};

}  // namespace tessera
