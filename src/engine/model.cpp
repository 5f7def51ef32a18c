// Wires the house: a folder on disk becomes a Model.
#include <algorithm>
#include <memory>
#include <optional>

#include "base/check.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/mask_embedding.h"
#include "model/generation.h"
#include "model/shape.h"
#include "model/traffic.h"
#include "weights/bind.h"
#include "weights/pack.h"

#include "engine/gpu.h"
#include "engine/parts.h"

namespace tessera {
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
    return make_reference_backend(std::move(checkpoint), std::move(weights));
}

// The dflash/ folder beside the target; none without one.
struct Drafter {
    Checkpoint checkpoint;
    DrafterWeights weights;
};
std::unique_ptr<Drafter> open_drafter(const std::filesystem::path& folder, const Shape& target) {
    if (!exists(folder / "config.json")) return nullptr;
    auto drafter = std::make_unique<Drafter>();
    drafter->checkpoint = open_checkpoint(folder);
    const DrafterShape shape =
        parse_drafter_shape(drafter->checkpoint.config, target, (folder / "config.json").string());
    const std::filesystem::path mask_file = folder / "mask_embedding.pt";
    const MaskEmbedding mask =
        parse_mask_embedding(MappedFile(mask_file).bytes(), mask_file.string());
    drafter->weights = bind_drafter(drafter->checkpoint, shape, mask);
    return drafter;
}

// Target and drafter in tile order. The pages of the mapping that were read are let go.
std::unique_ptr<CpuWeights> pack(const Checkpoint& checkpoint, const Weights& weights,
                                 const Drafter* drafter, PackOptions pack, ModelInfo& info) {
    check_scales(checkpoint, weights.shape, pack.threads);
    for (const MappedFile& shard : checkpoint.shards) shard.drop(shard.bytes());
    pack.drop = [&](std::span<const std::byte> read) {
        for (const MappedFile& shard : checkpoint.shards) shard.drop(read);
    };
    auto packed = std::make_unique<CpuWeights>();
    packed->target = pack_weights(weights, pack);
    if (drafter != nullptr) {
        pack.progress = {};
        pack.drop = [&](std::span<const std::byte> read) {
            for (const MappedFile& shard : drafter->checkpoint.shards) shard.drop(read);
        };
        info.weight_bytes += drafter->weights.bytes;
        packed->drafter =
            std::make_unique<PackedWeights>(pack_drafter(drafter->weights, packed->target, pack));
        const DrafterShape& d = drafter->weights.shape;
        info.drafter = fmt::format("DFlash drafter, {} layers, blocks of {}", d.layers, d.block);
    }
    return packed;
}

std::unique_ptr<Backend> load_cpu(const Checkpoint& checkpoint, const Weights& weights,
                                  const Drafter* drafter, uint32_t threads,
                                  const LoadOptions& options, ModelInfo& info) {
    if (const auto problem = ranks_problem(weights.shape, options.ranks))
        fail("--ranks: {}", *problem);
    CpuOptions cpu;
    cpu.ranks = options.ranks;
    cpu.workers = std::max(1u, threads / options.ranks);
    cpu.context = info.context_tokens;
    cpu.int8_activations = options.activations == Activations::kInt8;
    cpu.kernels = &wanted_kernels(options.isa);
    if (drafter != nullptr) {
        if (const auto problem = drafter_ranks_problem(drafter->weights.shape, options.ranks))
            fail("{}: {}; decode without it (--speculate off)", drafter->checkpoint.folder.string(),
                 *problem);
    }
    refuse_more_than_memory(packed_bytes(weights, options.ranks, Fp8::unpack_in_cache) +
                            (drafter != nullptr ? drafter->weights.bytes : 0));
    PackOptions how;
    how.ranks = options.ranks;
    how.fp8 = Fp8::unpack_in_cache;
    how.threads = threads;
    how.progress = options.progress;
    auto packed = pack(checkpoint, weights, drafter, how, info);
    info.machine = fmt::format("CPU, {}{} thread{}, {}, {} activations",
                               cpu.ranks > 1 ? fmt::format("{} ranks of ", cpu.ranks) : "",
                               cpu.workers, cpu.workers > 1 ? "s" : "", isa_name(cpu.kernels->isa),
                               cpu.int8_activations ? "int8" : "bf16");
    return make_cpu_backend(std::move(packed), cpu);
}

// What is the CPU's alone.
void refuse_on_gpu(const LoadOptions& options) {
    const auto refuse = [](const char* what) {
        fail("--device gpu: {} is for the CPU alone: leave one of them out", what);
    };
    if (options.engine == Engine::kReference) refuse("--engine");
    if (options.ranks != 1) refuse("--ranks");
    if (!options.isa.empty()) refuse("--isa");
    if (options.activations != Activations::kBf16) refuse("--activations");
}

std::unique_ptr<Backend> load_gpu(const Checkpoint& checkpoint, const Weights& weights,
                                  const Drafter* drafter, uint32_t threads,
                                  const LoadOptions& options, ModelInfo& info) {
    const gpu::Card card = wanted_card();
    const uint64_t bytes =
        packed_bytes(weights, 1) + (drafter != nullptr ? drafter->weights.bytes : 0);
    if (bytes > card.free_bytes) {
        fail(
            "--device gpu: the weights are {}, {} has {} of memory free: stop what else uses it, "
            "take a card with more memory or a smaller checkpoint, or decode without --device gpu",
            bytes_text(bytes), card.name, bytes_text(card.free_bytes));
    }
    refuse_more_than_memory(bytes);  // they pass through the machine's
    PackOptions how;
    how.threads = threads;
    how.progress = options.progress;
    auto packed = pack(checkpoint, weights, drafter, how, info);
    info.machine = fmt::format("GPU, {}, {} multiprocessors", card.name, card.multiprocessors);
    return make_gpu_backend(std::move(packed), info.context_tokens);
}

}  // namespace

Model Model::load(const std::filesystem::path& folder, const LoadOptions& options) {
    const bool on_gpu = options.device == Device::kGpu;
    if (on_gpu) refuse_on_gpu(options);
    if (on_gpu) wanted_card();  // before anything is read
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
                   {},
                   "",
                   has_every_byte(tokenizer)};
    info.recommended.temperature = generation.temperature;
    info.recommended.top_p = generation.top_p;
    info.recommended.top_k = generation.top_k;
    const uint32_t threads = options.threads > 0 ? options.threads : available_threads();
    std::unique_ptr<Drafter> drafter;
    if (options.drafter && options.engine == Engine::kCpu)
        drafter = open_drafter(folder / "dflash", shape);
    // Views point into the mapping, not into `checkpoint`: moving it moves neither.
    std::unique_ptr<Backend> backend =
        options.engine == Engine::kReference
            ? load_reference(std::move(checkpoint), std::move(weights), threads, options, info)
        : on_gpu ? load_gpu(checkpoint, weights, drafter.get(), threads, options, info)
                 : load_cpu(checkpoint, weights, drafter.get(), threads, options, info);
    auto parts = std::make_shared<Parts>(std::move(tokenizer), std::move(generation),
                                         std::move(info), std::move(backend));
    return Model(std::move(parts));
}

double Model::read_bandwidth() const {
    const std::scoped_lock lock(parts_->turn);
    return parts_->backend->read_bandwidth();
}

void Model::prepare_constraints() const {
    parts_->vocabulary_of_grammars();
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

std::string_view Model::token_bytes(Token token) const {
    return parts_->tokenizer.token_bytes(token);
}

Detokenizer Model::detokenizer(ShowSpecials specials) const {
    return Detokenizer(parts_->tokenizer, specials);
}

}  // namespace tessera
