// Wires the house: a folder on disk becomes a Model, a Model and a Sampling become a Session. The
// only file that sees every floor.
#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>

#include "base/check.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "decode/sample.h"
#include "model/generation.h"
#include "model/shape.h"
#include "model/traffic.h"
#include "reference/reference.h"
#include "runtime/cpu.h"
#include "tessera/model.h"
#include "tessera/session.h"
#include "text/tokenizer.h"
#include "weights/bind.h"
#include "weights/pack.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begun) {
    return std::chrono::duration<double>(Clock::now() - begun).count();
}

// ------------------------------------------------------------------ what decodes

// What reads tokens for one session.
class Reading {
  public:
    virtual ~Reading() = default;
    // At most kStepRowsMax tokens.
    virtual void read(std::span<const Token> tokens) = 0;
    // After the last token read; valid until the next read.
    virtual std::span<const float> logits() = 0;
    virtual uint32_t length() const = 0;
    // What the last read took in: bytes of weights and cache, distinct experts a layer.
    virtual double bytes() const { return 0; }
    virtual double experts() const { return 0; }
};

// What all sessions of a model share.
class Backend {
  public:
    virtual ~Backend() = default;
    virtual std::unique_ptr<Reading> begin() = 0;
    virtual double read_bandwidth() { return 0; }
};

// ------------------------------------------------------------------ the slow twin

class ReferenceBackend : public Backend {
  public:
    ReferenceBackend(Checkpoint checkpoint, Weights weights)
        : checkpoint_(std::move(checkpoint)),
          weights_(std::move(weights)),
          reference_(weights_, Rounding::bf16) {}

    std::unique_ptr<Reading> begin() override { return std::make_unique<Slow>(reference_); }

  private:
    class Slow : public Reading {
      public:
        explicit Slow(const Reference& reference) : reference_(reference) {}

        void read(std::span<const Token> tokens) override {
            const std::vector<float> rows = reference_.forward(cache_, tokens);
            hidden_.assign(rows.end() - reference_.shape().hidden, rows.end());
        }
        std::span<const float> logits() override {
            logits_ = reference_.logits(hidden_);
            return logits_;
        }
        uint32_t length() const override { return cache_.length; }

      private:
        const Reference& reference_;
        Reference::Cache cache_;
        std::vector<float> hidden_, logits_;
    };

    Checkpoint checkpoint_;  // keeps the mapping alive
    Weights weights_;
    Reference reference_;
};

// ------------------------------------------------------------------ the CPU machine

class CpuBackend : public Backend {
  public:
    CpuBackend(PackedWeights weights, const CpuOptions& options)
        : weights_(std::move(weights)),
          step_bytes_(weights_.shape, 1),
          expert_layers_(static_cast<uint32_t>(std::ranges::count(weights_.shape.is_moe, true))),
          machine_(weights_, options) {}

    std::unique_ptr<Reading> begin() override { return std::make_unique<Fast>(*this); }
    double read_bandwidth() override {
        constexpr double kSeconds = 0.1;
        const std::scoped_lock lock(turn_);
        return machine_.read_bandwidth(kSeconds);
    }

  private:
    // Allocates when a session begins, and not afterwards.
    class Fast : public Reading {
      public:
        explicit Fast(CpuBackend& backend)
            : backend_(backend),
              cache_(backend.weights_.shape, backend.machine_.options().ranks,
                     backend.machine_.options().context),
              positions_(kStepRowsMax),
              caches_(kStepRowsMax, &cache_),
              logits_(backend.weights_.shape.vocab) {}

        void read(std::span<const Token> tokens) override {
            const size_t rows = tokens.size();
            std::iota(positions_.begin(), positions_.begin() + static_cast<ptrdiff_t>(rows),
                      length_);
            const std::scoped_lock lock(backend_.turn_);
            backend_.machine_.step({tokens, std::span(positions_).first(rows),
                                    std::span(caches_).first(rows),
                                    static_cast<uint32_t>(rows) - 1});
            backend_.machine_.logits(static_cast<uint32_t>(rows) - 1, logits_);
            live_ = backend_.machine_.live_experts();
            length_ += static_cast<uint32_t>(rows);
        }
        std::span<const float> logits() override { return logits_; }
        uint32_t length() const override { return length_; }

        double bytes() const override { return backend_.step_bytes_(length_, experts()); }
        double experts() const override {
            return backend_.expert_layers_ > 0 ? 1.0 * live_ / backend_.expert_layers_ : 0;
        }

      private:
        CpuBackend& backend_;
        KvCache cache_;
        std::vector<uint32_t> positions_;
        std::vector<const KvCache*> caches_;
        std::vector<float> logits_;
        uint32_t length_ = 0;
        uint32_t live_ = 0;
    };

    PackedWeights weights_;
    StepBytes step_bytes_;
    uint32_t expert_layers_;
    CpuMachine machine_;
    std::mutex turn_;  // the machine takes one step at a time
};

}  // namespace

// ------------------------------------------------------------------ the model

struct Model::Parts {
    Tokenizer tokenizer;
    Generation generation;
    ModelInfo info;
    std::unique_ptr<Backend> backend;
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

namespace {

// A context that a machine of ordinary memory can hold for a model of any size.
constexpr uint32_t kContextDefault = 32768;

uint32_t wanted_context(const Shape& shape, const LoadOptions& options) {
    if (options.context > shape.context_max)
        fail("--context {}: the model's context is {}", options.context, shape.context_max);
    if (options.context > 0) return options.context;
    if (options.engine == Engine::kReference) return shape.context_max;
    return std::min(shape.context_max, kContextDefault);
}

const Kernels& wanted_kernels(const std::string& isa) {
    if (isa.empty()) return best_kernels();
    const auto known = isa_of(isa);
    if (!known) {
        std::string names;
        for (const Isa one : kIsas)
            names += (names.empty() ? "" : ", ") + std::string(isa_name(one));
        fail("--isa {}: expected one of {}", isa, names);
    }
    const Kernels* const found = find_kernels(*known);
    if (found == nullptr)
        fail("--isa {}: this processor lacks it; the fastest it has is {}", isa,
             isa_name(best_kernels().isa));
    return *found;
}

std::unique_ptr<Backend> load_reference(Checkpoint checkpoint, Weights weights, uint32_t threads,
                                        const LoadOptions& options, ModelInfo& info) {
    refuse_more_than_memory(weights.bytes);
    read_through(checkpoint, weights.shape, threads, options.progress);
    info.machine = "reference engine on the CPU, 1 thread";
    return std::make_unique<ReferenceBackend>(std::move(checkpoint), std::move(weights));
}

std::unique_ptr<Backend> load_cpu(const Checkpoint& checkpoint, const Weights& weights,
                                  uint32_t threads, const LoadOptions& options, ModelInfo& info) {
    if (const auto problem = ranks_problem(weights.shape, options.ranks))
        fail("--ranks: {}", *problem);
    CpuOptions cpu;
    cpu.ranks = options.ranks;
    cpu.workers = std::max(1u, threads / options.ranks);
    cpu.context = info.context_tokens;
    cpu.int8_activations = options.activations == Activations::kInt8;
    cpu.kernels = &wanted_kernels(options.isa);
    refuse_more_than_memory(packed_bytes(weights, options.ranks));
    check_scales(checkpoint, weights.shape, threads);
    for (const MappedFile& shard : checkpoint.shards) shard.drop(shard.bytes());
    PackOptions pack;
    pack.ranks = options.ranks;
    pack.threads = threads;
    pack.progress = options.progress;
    pack.drop = [&](std::span<const std::byte> read) {
        for (const MappedFile& shard : checkpoint.shards) shard.drop(read);
    };
    PackedWeights packed = pack_weights(weights, pack);
    info.machine = fmt::format("CPU, {}{} thread{}, {}, {} activations",
                               cpu.ranks > 1 ? fmt::format("{} ranks of ", cpu.ranks) : "",
                               cpu.workers, cpu.workers > 1 ? "s" : "", isa_name(cpu.kernels->isa),
                               cpu.int8_activations ? "int8" : "bf16");
    return std::make_unique<CpuBackend>(std::move(packed), cpu);
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
    ModelInfo info{summarize(shape, weights.bytes, canonical(folder)),
                   "",
                   wanted_context(shape, options),
                   shape.vocab,
                   weights.bytes,
                   generation.end_tokens,
                   {}};
    info.recommended.temperature = generation.temperature;
    info.recommended.top_p = generation.top_p;
    info.recommended.top_k = generation.top_k;
    const uint32_t threads = options.threads > 0 ? options.threads : available_threads();
    // Views point into the mapping, not into `checkpoint`: moving it moves neither.
    std::unique_ptr<Backend> backend =
        options.engine == Engine::kReference
            ? load_reference(std::move(checkpoint), std::move(weights), threads, options, info)
            : load_cpu(checkpoint, weights, threads, options, info);
    return Model(std::make_shared<Parts>(
        Parts{std::move(tokenizer), std::move(generation), std::move(info), std::move(backend)}));
}

double Model::read_bandwidth() const {
    return parts_->backend->read_bandwidth();
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
    std::unique_ptr<Reading> reading;
    Sampler sampler;
    // The newest token: chosen, and read only when more is wanted.
    std::optional<Token> unread = {};
    Stats stats = {};

    uint32_t length() const { return reading->length() + (unread ? 1 : 0); }

    bool read_newest() {
        if (!unread) return false;
        reading->read(std::span(&*unread, 1));
        unread.reset();
        return true;
    }
};

Session::Session(Model model, const Sampling& sampling) {
    std::unique_ptr<Reading> reading = model.parts_->backend->begin();
    const uint32_t vocab = model.info().vocab;
    state_ = std::make_unique<State>(
        State{std::move(model), std::move(reading), Sampler(sampling, vocab)});
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
        const auto piece = tokens.subspan(at, std::min<size_t>(kStepRowsMax, tokens.size() - at));
        s.reading->read(piece);
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
    const bool was_read = s.read_newest();
    const Token token = s.sampler.choose(s.reading->logits(), s.reading->length());
    s.unread = token;
    s.stats.seconds += seconds_since(begun);
    ++s.stats.tokens;
    ++s.stats.steps;
    if (was_read) {
        s.stats.bytes += s.reading->bytes();
        s.stats.experts += (s.reading->experts() - s.stats.experts) / s.stats.steps;
    }
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
