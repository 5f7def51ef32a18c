// tessera compare: the reference, the debug machine and the CPU machine on one prompt, value by
// value. Says which tile lies first.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>

#include <fmt/format.h>

#include "base/error.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "reference/reference.h"
#include "runtime/cpu.h"
#include "runtime/single.h"
#include "tessera/model.h"
#include "weights/pack.h"

#include "commands.h"
#include "report.h"

namespace tessera {
namespace {

using Stage = Reference::Stage;

struct CompareOptions {
    std::string model, isa, prompt = "def fibonacci(n):\n    ", activations = "bf16";
    uint32_t workers = 0, ranks = 1;
    uint32_t stop_after = UINT32_MAX;
    double tolerance = 0.5;
};

constexpr int kExitDifferent = 1;

// ------------------------------------------------------------------ what the reference computes

struct StageKey {
    uint32_t layer;
    Stage stage;
    auto operator<=>(const StageKey&) const = default;
};
using Stages = std::map<StageKey, std::vector<float>>;

std::string_view stage_name(Stage stage) {
    switch (stage) {
        case Stage::query:
            return "query";
        case Stage::mixed:
            return "mixed";
        case Stage::attended:
            return "stream after attention";
        case Stage::residual:
            return "stream after the layer";
    }
    return "";
}

// Which stage a phase completes, and in which buffer; none for the others.
struct Completed {
    Stage stage;
    Value value;
};
std::optional<Completed> completed_by(const Program& p, const Tile& tile) {
    const bool several = p.request.ranks > 1;
    switch (tile.op) {
        case Op::qkv:
            return Completed{Stage::query, Value::query};
        case Op::attend:
            if (is_one_chunk(p.request, tile.layer)) return Completed{Stage::mixed, Value::mixed};
            return std::nullopt;
        case Op::merge:
            return Completed{Stage::mixed, Value::mixed};
        case Op::output:
            if (!several) return Completed{Stage::attended, Value::residual};
            return std::nullopt;
        case Op::down:
            if (!several) return Completed{Stage::residual, Value::residual};
            return std::nullopt;
        case Op::exchange:
            return Completed{tile.slot == kPartialOutput ? Stage::attended : Stage::residual,
                             Value::residual};
        default:
            return std::nullopt;
    }
}

// Where column `c` of rank `rank`'s buffer stands in a row of the reference's.
uint32_t reference_column(const Program& p, const Tile& tile, Stage stage, uint32_t c) {
    const AttentionShape& a = p.request.shape.attention(tile.layer);
    const uint32_t first = attention_part(a, tile.rank, p.request.ranks).heads.begin;
    if (stage == Stage::mixed) return first * a.v_head_dim + c;
    if (stage != Stage::query) return c;
    const uint32_t dim = a.head_dim;
    return (first + c / dim) * a.head_dim + rotary_source_dim(c % dim, a.rotary_dims);
}

// ------------------------------------------------------------------ against the reference

// The largest difference of a stage, in units of its row's root mean square.
struct Worst {
    double difference = 0;
    uint32_t row = 0, column = 0;
    float expected = 0, found = 0;
};

Worst worst_difference(const SingleMachine& machine, const Program& p, uint32_t tile_index,
                       const Completed& at, const std::vector<float>& expected, uint32_t rows) {
    const Tile& tile = p.tiles[tile_index];
    const Buffer& buffer = p.buffers[find_buffer(p, at.value, tile.rank)];
    const std::byte* const bytes = machine.executor().bytes(buffer).data();
    const size_t width = expected.size() / rows;
    Worst worst;
    for (const Access& access : accesses(p, tile)) {
        if (!access.write || p.buffers[access.buffer].value != at.value) continue;
        for (uint32_t row = 0; row < rows; ++row) {
            const float* const reference = &expected[row * width];
            const double squares = std::inner_product(reference, reference + width, reference, 0.0);
            const double size = std::sqrt(squares / static_cast<double>(width)) + 1e-30;
            for (uint32_t c = access.columns.begin; c < access.columns.end; ++c) {
                float found;
                std::memcpy(&found, bytes + row * buffer.row_bytes + c * sizeof found,
                            sizeof found);
                const float want = reference[reference_column(p, tile, at.stage, c)];
                const double difference = std::fabs(double{found} - want) / size;
                if (!(difference <= worst.difference)) worst = {difference, row, c, want, found};
            }
        }
    }
    return worst;
}

std::string tile_text(const Program& p, uint32_t index) {
    const Tile& t = p.tiles[index];
    return fmt::format("tile {} ({}, layer {}, rank {}, {} to {})", index, op_name(t.op), t.layer,
                       t.rank, t.begin, t.end);
}

// ------------------------------------------------------------------ one machine against the other

bool is_phase_end(const Program& p, uint32_t index) {
    return index + 1 == p.tiles.size() || p.tiles[index + 1].op != p.tiles[index].op ||
           p.tiles[index + 1].layer != p.tiles[index].layer;
}

// Buffers whose every written place is a float at its column.
bool is_plain(Value value) {
    return value == Value::residual || value == Value::normed || value == Value::query ||
           value == Value::mixed || value == Value::partial || value == Value::scores ||
           value == Value::logits;
}

using Snapshot = std::vector<float>;

Snapshot written_by(const Executor& executor, const Program& p, uint32_t tile, uint32_t rows) {
    Snapshot values;
    for (const Access& access : accesses(p, p.tiles[tile])) {
        const Buffer& buffer = p.buffers[access.buffer];
        if (!access.write || !is_plain(buffer.value)) continue;
        const std::byte* const bytes = executor.bytes(buffer).data();
        for (uint32_t row = access.rows.begin; row < std::min(access.rows.end, rows); ++row) {
            const auto* const from = reinterpret_cast<const float*>(bytes + row * buffer.row_bytes);
            values.insert(values.end(), from + access.columns.begin, from + access.columns.end);
        }
    }
    return values;
}

// ------------------------------------------------------------------ the command

struct Prompt {
    std::vector<uint32_t> tokens, positions;
    std::vector<const KvCache*> caches;

    StepInput input() const { return {tokens, positions, caches, 0}; }
};

int compare(const CompareOptions& options) {
    const std::filesystem::path folder =
        options.model.empty() ? bundled_model() : std::filesystem::path(options.model);
    Prompt prompt;
    prompt.tokens = Model::load(folder).encode(options.prompt);
    if (prompt.tokens.size() > kStepRowsMax) prompt.tokens.resize(kStepRowsMax);
    if (prompt.tokens.empty()) fail("the prompt is empty");
    const auto rows = static_cast<uint32_t>(prompt.tokens.size());
    prompt.positions.resize(rows);
    std::iota(prompt.positions.begin(), prompt.positions.end(), 0u);

    const Checkpoint checkpoint = open_checkpoint(folder);
    const Weights weights =
        bind(checkpoint, parse_shape(checkpoint.config, (folder / "config.json").string()));
    if (const auto problem = ranks_problem(weights.shape, options.ranks))
        fail("--ranks: {}", *problem);
    check_scales(checkpoint, weights.shape, available_threads());
    PackOptions pack;
    pack.ranks = options.ranks;
    pack.threads = available_threads();
    const PackedWeights packed = pack_weights(weights, pack);
    const auto isa = options.isa.empty() ? std::optional(best_kernels().isa) : isa_of(options.isa);
    const Kernels* const kernels = isa ? find_kernels(*isa) : nullptr;
    if (kernels == nullptr) fail("--isa {}: not known, or not on this processor", options.isa);

    PlanRequest request;
    request.shape = weights.shape;
    request.ranks = options.ranks;
    request.workers = options.workers > 0 ? options.workers : available_threads();
    request.rows = rows;
    request.context = kChunkKeys;
    if (weights.shape.quantization.mxfp4_experts)
        request.blocks = options.activations == "int8" ? Blocks::int8 : Blocks::int16;
    const Program program = plan(request);
    const auto last_tile =
        std::min(options.stop_after, static_cast<uint32_t>(program.tiles.size()) - 1);
    fmt::print("{} tokens, {} tiles, {} rank{} of {} worker{}, {}\n\n", rows, program.tiles.size(),
               request.ranks, request.ranks == 1 ? "" : "s", request.workers,
               request.workers == 1 ? "" : "s", isa_name(kernels->isa));

    Stages stages;
    const Reference reference(weights, Rounding::bf16);
    Reference::Cache reference_cache;
    reference.forward(reference_cache, prompt.tokens,
                      [&](uint32_t layer, Stage stage, std::span<const float> values) {
                          stages[{layer, stage}].assign(values.begin(), values.end());
                      });

    // The debug machine, tile by tile.
    const KvCache cache(weights.shape, options.ranks, kChunkKeys);
    prompt.caches.assign(rows, &cache);
    SingleMachine single(program, packed, *kernels);
    std::map<Stage, Worst> by_stage;
    std::optional<std::string> first_lie;
    std::vector<Snapshot> snapshots(program.tiles.size());
    const auto poison = single.step(prompt.input(), last_tile, [&](uint32_t tile) {
        snapshots[tile] = written_by(single.executor(), program, tile, rows);
        const auto at = completed_by(program, program.tiles[tile]);
        if (!at) return;
        const Worst worst = worst_difference(single, program, tile, *at,
                                             stages[{program.tiles[tile].layer, at->stage}], rows);
        Worst& so_far = by_stage[at->stage];
        if (worst.difference > so_far.difference) so_far = worst;
        if (!first_lie && worst.difference > options.tolerance) {
            first_lie = fmt::format("{}: {}, row {}, column {}: expected {}, found {}",
                                    tile_text(program, tile), stage_name(at->stage), worst.row,
                                    worst.column, worst.expected, worst.found);
        }
    });
    std::vector<std::vector<std::string>> table = {{"debug machine against reference", "largest"}};
    for (const auto& [stage, worst] : by_stage)
        table.push_back({std::string(stage_name(stage)), fmt::format("{:.4f}", worst.difference)});
    print_table(table);
    fmt::print("(in units of the row's root mean square; tolerance {})\n\n", options.tolerance);
    if (poison) fmt::print("POISON: {}\n", *poison);
    if (first_lie) fmt::print("FIRST DIFFERENCE: {}\n", *first_lie);

    // The CPU machine up to the end of every phase, bit for bit.
    std::optional<std::string> first_bit;
    Workers workers(request.ranks * request.workers, true);
    std::vector<std::unique_ptr<Scratch>> scratch;
    for (uint32_t w = 0; w < workers.count(); ++w)
        scratch.push_back(std::make_unique<Scratch>(request));
    uint32_t phases = 0;
    for (uint32_t end = 0, begin = 0; end <= last_tile && !first_bit; ++end) {
        if (!is_phase_end(program, end) && end < last_tile) continue;
        const KvCache own(weights.shape, options.ranks, kChunkKeys);
        prompt.caches.assign(rows, &own);
        CpuProgram part(truncated(program, end), packed, *kernels, CpuProgram::Extent::truncated);
        part.begin(prompt.input());
        workers.everyone([&](uint32_t w) { part.walk(w, *scratch[w], nullptr, 0); });
        for (uint32_t tile = begin; tile <= end && !first_bit; ++tile) {
            const Snapshot found = written_by(part.executor(), program, tile, rows);
            const Snapshot& expected = snapshots[tile];
            for (size_t i = 0; i < expected.size() && !first_bit; ++i) {
                if (std::memcmp(&found[i], &expected[i], sizeof(float)) == 0) continue;
                first_bit = fmt::format("{}: element {}: expected {}, found {}",
                                        tile_text(program, tile), i, expected[i], found[i]);
            }
        }
        begin = end + 1;
        ++phases;
    }
    if (first_bit) {
        fmt::print("CPU MACHINE DIFFERS: {}\n", *first_bit);
    } else {
        fmt::print(
            "the CPU machine equals the debug machine bit for bit, after each of {} phases\n",
            phases);
    }
    return poison || first_lie || first_bit ? kExitDifferent : 0;
}

constexpr const char* kExamples = R"(Examples:
  tessera compare                                   the bundled model, a short prompt
  tessera compare --ranks 2 --workers 3 --isa avx2
  tessera compare --stop-after 120                  only the first tiles
Exit code: 0 if all agree, 1 if not, 2 for an error.
)";

}  // namespace

void add_compare(CLI::App& program) {
    auto options = std::make_shared<CompareOptions>();
    CLI::App& command = *program.add_subcommand(
        "compare", "Run a prompt through every machine, and say which tile differs first");
    command.footer(kExamples);
    command.add_option("prompt", options->prompt, "Text to read, at most 64 tokens of it");
    command.add_option("-m,--model", options->model, "Folder of a checkpoint (default: bundled)");
    command.add_option("--workers", options->workers, "Of each rank (default: all threads)")
        ->check(CLI::Range(1, 1024));
    command.add_option("--ranks", options->ranks, "1, 2, 4 or 8")->capture_default_str();
    command.add_option("--isa", options->isa, "portable, avx2, avx512 or avx512-vnni");
    command.add_option("--activations", options->activations, "bf16 or int8")
        ->check(CLI::IsMember({"bf16", "int8"}))
        ->capture_default_str();
    command
        .add_option("--tolerance", options->tolerance,
                    "Against the reference, in units of a row's root mean square")
        ->capture_default_str();
    command.add_option("--stop-after", options->stop_after, "The last tile to run");
    command.callback([options] {
        const int code = compare(*options);
        if (code != 0) throw CLI::RuntimeError(code);
    });
}

}  // namespace tessera
