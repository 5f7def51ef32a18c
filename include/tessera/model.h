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

// What decodes: persistent workers over packed weights, or the slow twin that they are compared
// with.
enum class Engine : uint8_t { kCpu, kReference };

// What experts multiply with: the model's own bf16, or int8 with a scale for each 32 (faster; its
// cost in docs/NUMERICS.md).
enum class Activations : uint8_t { kBf16, kInt8 };

// Where the engine decodes.
enum class Device : uint8_t { kCpu, kGpu };

struct LoadOptions {
    Engine engine = Engine::kCpu;
    Device device = Device::kCpu;  // kGpu: the first card, without ranks, isa and activations
    uint32_t threads = 0;          // workers, and for loading; 0: all that the process may use
    uint32_t ranks = 1;            // groups of workers with weights of their own: 1, 2, 4 or 8
    uint32_t context = 0;          // tokens of a session at most; 0: the model's, at most 32768
    std::string isa;               // portable, avx2, avx512, avx512-vnni; empty: the fastest
    Activations activations = Activations::kBf16;
    bool drafter = true;  // load the checkpoint's drafter, if it has one
    std::function<void(uint64_t done, uint64_t total)> progress;  // bytes; one thread at a time
};

struct ModelInfo {
    std::string summary;            // one line: the shape in the terms of its config, and the bytes
    std::string machine;            // what decodes it: engine, threads, instructions
    uint32_t context_tokens;        // prompt and answer together
    uint32_t vocab;                 // of the logits; the tokenizer's may be smaller
    uint64_t weight_bytes;          // as stored, the drafter's among them
    std::vector<Token> end_tokens;  // any of these ends an answer
    Sampling recommended;           // of generation_config.json
    std::string drafter;            // what drafts; empty: nothing but text that repeats itself
    bool constrains;                // Session::constrain() works: each byte is a token
};

class Model {
  public:
    // Reads a Hugging Face folder. Throws Error: not a checkpoint, incomplete, a tensor that does
    // not fit the config, not enough memory, options that this machine or model cannot serve.
    static Model load(const std::filesystem::path& folder, const LoadOptions& options = {});

    // Bytes a second at which the workers read the model's weights and do nothing else: the ceiling
    // of decoding on this machine. Takes about a tenth of a second. 0 where it is not measured: for
    // the reference, and on a GPU.
    double read_bandwidth() const;

    // Sorts the vocabulary for constraints, a tenth of a second for a large one, instead of when
    // the first of them is used.
    void prepare_constraints() const;

    const ModelInfo& info() const;
    bool is_end(Token token) const;

    // The tokens of a text; spellings of special tokens in it are text.
    std::vector<Token> encode(std::string_view text) const;

    // The tokens of a conversation in the model's dialect. Throws Error if the tokenizer lacks it.
    std::vector<Token> encode_chat(std::span<const Turn> turns, const OrderedJson& tools = nullptr,
                                   const RenderOptions& options = {}) const;

    // The bytes that a token stands for, perhaps part of a character; a special one's spelling.
    // Empty for ids that are none. Valid while the model is.
    std::string_view token_bytes(Token token) const;

    // Turns tokens into text as they come; must not outlive the model.
    Detokenizer detokenizer(ShowSpecials specials = ShowSpecials::kSkip) const;

  private:
    friend class Session;
    struct Parts;
    explicit Model(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}

    std::shared_ptr<const Parts> parts_;
};

}  // namespace tessera
