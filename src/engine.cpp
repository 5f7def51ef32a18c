// Wires the house: a folder on disk becomes a Model, a Model and a Sampling become a Session. The
// only file that sees every floor.
#include <algorithm>
#include <chrono>
#include <optional>

#include "base/check.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "decode/sample.h"
#include "model/generation.h"
#include "model/shape.h"
#include "reference/reference.h"
#include "tessera/model.h"
#include "tessera/session.h"
#include "text/tokenizer.h"
#include "weights/bind.h"

namespace tessera {
namespace {

// A long prompt is read in pieces of this many rows: enough to share a weight's dequantisation,
// small enough that an interrupt is felt.
constexpr size_t kPromptRows = 64;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begun) {
    return std::chrono::duration<double>(Clock::now() - begun).count();
}

}  // namespace

// ------------------------------------------------------------------ the model

struct Model::Parts {
    Checkpoint checkpoint;  // keeps the mapping alive
    Tokenizer tokenizer;
    Generation generation;
    Weights weights;
    ModelInfo info;
    std::optional<Reference> reference;  // set once `weights` lies where it stays
};

namespace {

std::string summarize(const Shape& s, uint64_t bytes, const std::filesystem::path& folder) {
    const Quantization& q = s.quantization;
    return fmt::format("{}: {}, {} layers, hidden {}, {} experts (top {}), {}; {} of weights",
                       folder.filename().string(), s.model_type, s.layers, s.hidden, s.experts,
                       s.experts_per_token,
                       q.mxfp4_experts ? "MXFP4 experts"
                       : q.fp8         ? "FP8"
                                       : "bf16",
                       bytes_text(bytes));
}

Generation read_generation(const std::filesystem::path& folder, const Shape& shape,
                           const Tokenizer& tokenizer) {
    const std::filesystem::path file = folder / "generation_config.json";
    Generation g;
    if (exists(file))
        g = parse_generation(parse_json(read_text_file(file), file.string()), shape.vocab,
                             file.string());
    if (g.end_tokens.empty()) {
        for (const char* name : {"<|im_end|>", "<|endoftext|>"}) {
            if (const auto id = tokenizer.added_id_of(name)) g.end_tokens.push_back(*id);
        }
    }
    return g;
}

void refuse_more_than_memory(uint64_t bytes) {
    const uint64_t available = available_memory_bytes();
    if (bytes > available) {
        fail(
            "the weights are {}, this machine has {} of memory available: close other programs, "
            "use a "
            "machine with more memory, or a smaller checkpoint",
            bytes_text(bytes), bytes_text(available));
    }
}

}  // namespace

Model Model::load(const std::filesystem::path& folder, const LoadOptions& options) {
    Checkpoint checkpoint = open_checkpoint(folder);
    const Shape shape = parse_shape(checkpoint.config, (folder / "config.json").string());
    Tokenizer tokenizer = Tokenizer::load(folder / "tokenizer.json");
    if (tokenizer.vocab_size() > shape.vocab) {
        fail("{}: the tokenizer has {} tokens, the model's vocab_size is {}", folder.string(),
             tokenizer.vocab_size(), shape.vocab);
    }
    Generation generation = read_generation(folder, shape, tokenizer);
    Weights weights = bind(checkpoint, shape);
    refuse_more_than_memory(weights.bytes);
    const uint32_t threads = options.threads > 0 ? options.threads : available_threads();
    read_through(checkpoint, shape, threads, options.progress);

    ModelInfo info{summarize(shape, weights.bytes, canonical(folder)),
                   shape.context_max,
                   shape.vocab,
                   weights.bytes,
                   generation.end_tokens,
                   {}};
    info.recommended.temperature = generation.temperature;
    info.recommended.top_p = generation.top_p;
    info.recommended.top_k = generation.top_k;
    // Views point into the mapping, not into `checkpoint`: moving it moves neither.
    auto parts = std::make_shared<Parts>(Parts{std::move(checkpoint),
                                               std::move(tokenizer),
                                               std::move(generation),
                                               std::move(weights),
                                               std::move(info),
                                               {}});
    parts->reference.emplace(parts->weights, Rounding::bf16);
    return Model(std::move(parts));
}

const ModelInfo& Model::info() const {
    return parts_->info;
}

bool Model::is_end(Token token) const {
    return std::ranges::find(parts_->info.end_tokens, token) != parts_->info.end_tokens.end();
}

std::vector<Token> Model::encode(std::string_view text) const {
    return parts_->tokenizer.encode(text, Specials::kAsText);
}

std::vector<Token> Model::encode_chat(std::span<const Turn> turns, const OrderedJson& tools,
                                      const RenderOptions& options) const {
    return ChatEncoder(parts_->tokenizer).encode(render(turns, tools, options));
}

Detokenizer Model::detokenizer(ShowSpecials specials) const {
    return Detokenizer(parts_->tokenizer, specials);
}

// ------------------------------------------------------------------ the session

struct Session::State {
    Model model;
    const Reference& reference;
    Sampler sampler;
    Reference::Cache cache = {};
    std::vector<float> hidden = {};  // of the last row read: what the next token is chosen from
    std::optional<Token> unread =
        {};  // the newest token: chosen, and read only when more is wanted
    Stats stats = {};

    uint32_t length() const { return cache.length + (unread ? 1 : 0); }

    void read(std::span<const Token> tokens) {
        const std::vector<float> rows = reference.forward(cache, tokens);
        hidden.assign(rows.end() - reference.shape().hidden, rows.end());
    }

    void read_newest() {
        if (unread) read(std::span(&*unread, 1));
        unread.reset();
    }
};

Session::Session(Model model, const Sampling& sampling) {
    const Reference& reference = *model.parts_->reference;
    const uint32_t vocab = model.info().vocab;
    state_ = std::make_unique<State>(State{std::move(model), reference, Sampler(sampling, vocab)});
}

Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

bool Session::append(std::span<const Token> tokens, const std::function<bool()>& go_on) {
    CHECK(tokens.size() <= room());
    const auto begun = Clock::now();
    State& s = *state_;
    s.read_newest();
    size_t at = 0;
    while (at < tokens.size() && (at == 0 || !go_on || go_on())) {
        const auto piece = tokens.subspan(at, std::min(kPromptRows, tokens.size() - at));
        s.read(piece);
        at += piece.size();
    }
    s.stats.prompt_tokens += static_cast<uint32_t>(at);
    s.stats.prompt_seconds += seconds_since(begun);
    return at == tokens.size();
}

Token Session::next() {
    State& s = *state_;
    CHECK(room() > 0 && s.length() > 0);
    const auto begun = Clock::now();
    s.read_newest();
    const Token token = s.sampler.choose(s.reference.logits(s.hidden), s.cache.length);
    s.unread = token;
    s.stats.seconds += seconds_since(begun);
    ++s.stats.tokens;
    ++s.stats.steps;
    for (uint32_t shift = 0; shift < 32; shift += 8) {
        s.stats.hash = (s.stats.hash ^ (token >> shift & 255)) * 0x100000001b3u;
    }
    return token;
}

uint32_t Session::room() const {
    return state_->model.info().context_tokens - state_->length();
}

const Stats& Session::stats() const {
    return state_->stats;
}

}  // namespace tessera
