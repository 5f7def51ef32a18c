// tessera compare: the reference, the debug machine and the CPU machine on one prompt, value by
// value, and the same for the drafter with what the target leaves for it. Says which tile lies
// first.
#include "compare.h"

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>

#include <fmt/format.h>

#include "base/error.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "reference/reference.h"
#include "runtime/cpu.h"
#include "tessera/model.h"
#include "weights/pack.h"

#include "commands.h"

namespace tessera {
namespace {

using Stage = Reference::Stage;

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

Worst worst_difference(const Executor& executor, uint32_t tile, const Completed& at,
                       const std::vector<float>& expected, uint32_t rows) {
    const Program& p = executor.program();
    const size_t width = expected.size() / rows;
    std::vector<double> sizes;
    for (uint32_t row = 0; row < rows; ++row)
        sizes.push_back(root_mean_square(std::span(expected).subspan(row * width, width)));
    Worst worst;
    each_written(executor, tile, at.value, rows, [&](uint32_t row, uint32_t c, float found) {
        const uint32_t column = reference_column(p, p.tiles[tile], at.stage, c);
        worst.add(sizes[row], row, c, expected[row * width + column], found);
    });
    return worst;
}

// What a norm tile keeps for the drafter, against the stream after that layer.
Worst worst_tap(const Program& p, const Tile& tile, std::span<bf16* const> taps,
                const std::vector<float>& expected) {
    const uint32_t hidden = p.request.shape.hidden;
    Worst worst;
    const auto end = std::min(tile.end, static_cast<uint32_t>(taps.size()));
    for (uint32_t row = tile.begin; row < end; ++row) {
        const auto want = std::span(expected).subspan(size_t{row} * hidden, hidden);
        const double size = root_mean_square(want);
        const bf16* const found = taps[row] + (tile.part - 1u) * size_t{hidden};
        for (uint32_t c = 0; c < hidden; ++c) worst.add(size, row, c, want[c], to_float(found[c]));
    }
    return worst;
}

// ------------------------------------------------------------------ the command

struct Prompt {
    std::vector<uint32_t> tokens, positions;
    std::vector<const KvCache*> caches;
    std::unique_ptr<KvCache> cache;
    std::vector<bf16> kept;   // rows, taps * hidden
    std::vector<bf16*> taps;  // rows; empty where nobody wants them

    void keep_taps(size_t columns) {
        kept.resize(tokens.size() * columns);
        for (size_t row = 0; row < tokens.size(); ++row) taps.push_back(&kept[row * columns]);
    }
    StepInput fresh(const Program& program) {
        cache = std::make_unique<KvCache>(program.request.shape, program.request.ranks, kChunkKeys);
        caches.assign(tokens.size(), cache.get());
        return {tokens, positions, caches, 0, taps};
    }
};

// At most the tokens of one step.
Prompt read_prompt(const std::filesystem::path& folder, const std::string& text) {
    Prompt prompt;
    prompt.tokens = Model::load(folder).encode(text);
    if (prompt.tokens.size() > kStepRowsMax) prompt.tokens.resize(kStepRowsMax);
    if (prompt.tokens.empty()) fail("the prompt is empty");
    prompt.positions.resize(prompt.tokens.size());
    std::iota(prompt.positions.begin(), prompt.positions.end(), 0u);
    return prompt;
}

Stages stages_of(const Weights& weights, std::span<const uint32_t> tokens) {
    Stages stages;
    const Reference reference(weights, Rounding::bf16);
    Reference::Cache cache;
    reference.forward(cache, tokens,
                      [&](uint32_t layer, Stage stage, std::span<const float> values) {
                          stages[{layer, stage}].assign(values.begin(), values.end());
                      });
    return stages;
}

// The likeliest token behind the last row.
uint32_t likeliest(const Executor& executor, uint32_t row) {
    std::vector<float> logits;
    for (uint32_t rank = 0; rank < executor.program().request.ranks; ++rank) {
        const std::span<const float> part = executor.logits(rank, row);
        logits.insert(logits.end(), part.begin(), part.end());
    }
    return static_cast<uint32_t>(std::ranges::max_element(logits) - logits.begin());
}

int compare(CompareOptions options) {
    const std::filesystem::path folder =
        options.model.empty() ? bundled_model() : std::filesystem::path(options.model);
    Prompt prompt = read_prompt(folder, options.prompt);
    const auto rows = static_cast<uint32_t>(prompt.tokens.size());

    const Checkpoint checkpoint = open_checkpoint(folder);
    const Weights weights =
        bind(checkpoint, parse_shape(checkpoint.config, (folder / "config.json").string()));
    if (const auto problem = ranks_problem(weights.shape, options.ranks))
        fail("--ranks: {}", *problem);
    check_scales(checkpoint, weights.shape, available_threads());
    PackOptions pack;
    pack.fp8 = Fp8::unpack_in_cache;
    pack.ranks = options.ranks;
    pack.threads = available_threads();
    const PackedWeights packed = pack_weights(weights, pack);
    const auto drafter = compared_drafter(folder / "dflash", packed, pack);
    const auto isa = options.isa.empty() ? std::optional(best_kernels().isa) : isa_of(options.isa);
    const Kernels* const kernels = isa ? find_kernels(*isa) : nullptr;
    if (kernels == nullptr) fail("--isa {}: not known, or not on this processor", options.isa);

    PlanRequest request;
    request.shape = weights.shape;
    request.ranks = options.ranks;
    if (options.workers == 0) options.workers = available_threads();
    request.workers = options.workers;
    request.rows = rows;
    request.context = kChunkKeys;
    if (weights.shape.quantization.mxfp4_experts)
        request.blocks = options.activations == "int8" ? Blocks::int8 : Blocks::int16;
    if (drafter) {
        request.taps = drafter->weights.shape.taps;
        prompt.keep_taps(drafter->weights.fc.columns);
    }
    const Program program = plan(request);
    fmt::print("{} tokens, {} tiles, {} rank{} of {} worker{}, {}\n\n", rows, program.tiles.size(),
               request.ranks, request.ranks == 1 ? "" : "s", request.workers,
               request.workers == 1 ? "" : "s", isa_name(kernels->isa));

    const Stages stages = stages_of(weights, prompt.tokens);
    std::optional<uint32_t> anchor;
    const auto judge = [&](const Executor& executor, uint32_t index) -> std::optional<Judgement> {
        const Tile& tile = program.tiles[index];
        if (index + 1 == program.tiles.size()) anchor = likeliest(executor, rows - 1);
        if (tile.op == Op::norm && tile.part > 0 && tile.rank == 0) {
            const uint32_t layer = request.taps[tile.part - 1u];
            return Judgement{
                "tap", worst_tap(program, tile, prompt.taps, stages.at({layer, Stage::residual}))};
        }
        const auto at = completed_by(program, tile);
        if (!at) return std::nullopt;
        return Judgement{
            stage_name(at->stage),
            worst_difference(executor, index, *at, stages.at({tile.layer, at->stage}), rows)};
    };
    const auto fresh = [&] { return prompt.fresh(program); };
    bool agree = machines_agree({program, packed, *kernels, fresh, judge}, options.tolerance,
                                options.stop_after);
    if (drafter && anchor) {
        agree &= drafter_agrees(*drafter, weights, *kernels, prompt.kept, *anchor, options);
    } else if (drafter) {
        fmt::print("the drafter is not compared: the target stopped before its last tile\n");
    }
    return agree ? 0 : kExitDifferent;
}

constexpr const char* kExamples = R"(Examples:
  tessera compare                                   the bundled model, a short prompt
  tessera compare --ranks 2 --workers 3 --isa avx2
  tessera compare --stop-after 120                  only the first tiles, and no drafter
Exit code: 0 if all agree, 1 if not, 2 for an error.
)";

}  // namespace

void add_compare(CLI::App& program) {
    auto options = std::make_shared<CompareOptions>();
    CLI::App& command = *program.add_subcommand(
        "compare", "Run a prompt through every machine, and say which tile differs first");
    command.footer(kExamples);
    command.add_option("prompt", options->prompt, "Text to read, at most 64 tokens of it");
    command.add_option("-m,--model", options->model, "Folder of a checkpoint (default: bundled)")
        ->type_name("FOLDER");
    command.add_option("--workers", options->workers, "Of each rank (default: all threads)")
        ->check(CLI::Range(1, 1024));
    command.add_option("--ranks", options->ranks, "1, 2, 4 or 8")->capture_default_str();
    command.add_option("--isa", options->isa, "Instructions (default: the fastest here)")
        ->type_name("{portable,avx2,avx512,avx512-vnni}");
    command.add_option("--activations", options->activations, "bf16 or int8")
        ->check(CLI::IsMember({"bf16", "int8"}))
        ->capture_default_str();
    command
        .add_option("--tolerance", options->tolerance,
                    "Against the reference, in units of a row's root mean square")
        ->capture_default_str();
    command.add_option("--stop-after", options->stop_after, "The target's last tile to run");
    command.callback([options] {
        const int code = compare(*options);
        if (code != 0) throw CLI::RuntimeError(code);
    });
}

}  // namespace tessera
