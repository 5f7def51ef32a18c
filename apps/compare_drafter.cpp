// The drafter's half of compare: context and block programs against the drafter's slow twin, both
// fed with the taps that a machine kept of the target.
#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "base/mapped_file.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/mask_embedding.h"
#include "runtime/single.h"

#include "compare.h"

namespace tessera {
namespace {

// What the twin makes of the same taps.
struct Twin {
    ReferenceDrafter::Cache cache;
    std::vector<std::vector<float>> residual;  // by layer: block, hidden
    std::vector<float> logits;                 // block - 1, vocabulary
    uint32_t vocab;
};

Twin twin_of(const ComparedDrafter& drafter, const Weights& target, std::span<const bf16> taps,
             uint32_t anchor) {
    const ReferenceDrafter reference(drafter.weights, target, Rounding::bf16);
    std::vector<float> values;
    for (const bf16 value : taps) values.push_back(to_float(value));
    Twin twin{{}, std::vector<std::vector<float>>(drafter.weights.shape.layers), {}, 0};
    reference.extend(twin.cache, values);
    twin.logits = reference.logits(
        reference.propose(twin.cache, anchor, [&](uint32_t layer, std::span<const float> residual) {
            twin.residual[layer].assign(residual.begin(), residual.end());
        }));
    twin.vocab = target.shape.vocab;
    return twin;
}

// Keys and values of the context as the cache has them: what fc, its norm and a layer's projection
// made of the taps. The block's own are seen through attention.
Judgement judge_keys(const Program& p, const Tile& tile, const DraftContext& context,
                     const Twin& twin) {
    const AttentionShape& a = p.request.shape.attention(tile.layer);
    const Span heads = attention_part(a, tile.rank, p.request.ranks).kv_heads;
    const uint32_t k_rows = heads.count() * a.head_dim;
    const uint32_t end = std::min(tile.end * kUnitRows, k_rows + heads.count() * a.v_head_dim);
    Judgement judged{"context keys and values", {}};
    for (uint32_t row = 0; row < context.rows(); ++row) {
        const uint32_t position = context.position + row;
        const auto of_twin = [&](const std::vector<std::vector<float>>& table, uint32_t width) {
            return std::span(table[tile.layer]).subspan(size_t{position} * width, width);
        };
        const std::span<const float> keys = of_twin(twin.cache.keys, a.k_rows());
        const std::span<const float> values = of_twin(twin.cache.values, a.v_rows());
        const double key_size = root_mean_square(keys), value_size = root_mean_square(values);
        for (uint32_t c = tile.begin * kUnitRows; c < end; ++c) {
            const bool is_v = c >= k_rows;
            const uint32_t dim = is_v ? a.v_head_dim : a.head_dim;
            const uint32_t head = (is_v ? c - k_rows : c) / dim, d = (is_v ? c - k_rows : c) % dim;
            const KvSpan kv = context.cache->at(tile.rank, tile.layer, head, position);
            const uint32_t at = position % kv.ring;
            const bf16 found =
                is_v ? kv.values[at * value_row_elements(dim) + d]
                     : kv.keys[at / kUnitRows * key_tile_elements(dim) + d / 2 * (2 * kUnitRows) +
                               2 * (at % kUnitRows) + d % 2];
            const size_t of_head = size_t{heads.begin + head} * dim;
            judged.worst.add(
                is_v ? value_size : key_size, row, c,
                is_v ? values[of_head + d] : keys[of_head + rotary_source_dim(d, a.rotary_dims)],
                to_float(found));
        }
    }
    return judged;
}

std::optional<Judgement> judge_tile(const Executor& executor, uint32_t index,
                                    const DraftContext& context, const Twin& twin) {
    const Program& p = executor.program();
    const Tile& tile = p.tiles[index];
    const uint32_t rows = p.request.rows, hidden = p.request.shape.hidden;
    const bool completes_layer = p.request.ranks == 1
                                     ? tile.op == Op::down
                                     : tile.op == Op::exchange && tile.slot == kPartialDown;
    if (tile.op == Op::keys) return judge_keys(p, tile, context, twin);
    const auto compare = [&](std::string_view stage, Value value, const auto& row_of,
                             uint32_t first_column) {
        Judgement judged{stage, {}};
        each_written(executor, index, value, rows, [&](uint32_t row, uint32_t c, float found) {
            const std::span<const float> expected = row_of(row);
            if (expected.empty()) return;
            judged.worst.add(root_mean_square(expected), row, c, expected[first_column + c], found);
        });
        return judged;
    };
    if (completes_layer) {
        return compare(
            "stream after the layer", Value::residual,
            [&](uint32_t row) {
                return std::span(twin.residual[tile.layer]).subspan(size_t{row} * hidden, hidden);
            },
            0);
    }
    if (tile.op != Op::head) return std::nullopt;
    return compare(
        "logits of the block", Value::logits,
        [&](uint32_t row) {  // row 0 is the anchor's, which drafts nothing
            return row == 0 ? std::span<const float>()
                            : std::span(twin.logits)
                                  .subspan((row - 1ull) * twin.vocab, size_t{twin.vocab});
        },
        share(twin.vocab, tile.rank, p.request.ranks).begin);
}

// The two steps of a first draft: all of the context but its end, then its end and the block.
class Steps {
  public:
    Steps(const Shape& layers, uint32_t ranks, const DrafterShape& shape,
          std::span<const bf16> taps, uint32_t anchor)
        : layers_(layers), ranks_(ranks), tokens_(shape.block, anchor), positions_(shape.block) {
        const size_t columns = shape.taps.size() * shape.hidden;
        for (size_t at = 0; at < taps.size(); at += columns) tapped_.push_back(&taps[at]);
        std::iota(positions_.begin(), positions_.end(), static_cast<uint32_t>(tapped_.size()));
    }

    // Takes in the first `count` rows, into a cache that has nothing.
    StepInput context(uint32_t count) {
        cache_ = std::make_unique<KvCache>(layers_, ranks_, kChunkKeys);
        caches_.assign(tokens_.size(), cache_.get());
        now_ = {};
        now_.context = {cache_.get(), 0, std::span(tapped_).first(count), 0};
        return now_;
    }

    // The rest, into the cache that context() began.
    StepInput block(uint32_t taken) {
        now_ = {tokens_, positions_, caches_, 1};
        now_.context = {cache_.get(), taken, std::span(tapped_).subspan(taken), 0};
        return now_;
    }

    const StepInput& now() const { return now_; }

  private:
    const Shape& layers_;
    uint32_t ranks_;
    std::vector<uint32_t> tokens_, positions_;  // the masked rows' tokens are not looked at
    std::vector<const bf16*> tapped_;
    std::vector<const KvCache*> caches_;
    std::unique_ptr<KvCache> cache_;
    StepInput now_;
};

}  // namespace

std::unique_ptr<ComparedDrafter> compared_drafter(const std::filesystem::path& folder,
                                                  const PackedWeights& target,
                                                  const PackOptions& pack) {
    if (!exists(folder / "config.json")) return nullptr;
    auto made = std::make_unique<ComparedDrafter>();
    made->checkpoint = open_checkpoint(folder);
    const DrafterShape shape = parse_drafter_shape(made->checkpoint.config, target.shape,
                                                   (folder / "config.json").string());
    if (const auto problem = drafter_ranks_problem(shape, pack.ranks)) {
        fmt::print("the drafter is not compared: {}\n", *problem);
        return nullptr;
    }
    const std::filesystem::path mask = folder / "mask_embedding.pt";
    made->weights = bind_drafter(made->checkpoint, shape,
                                 parse_mask_embedding(MappedFile(mask).bytes(), mask.string()));
    made->packed = pack_drafter(made->weights, target, pack);
    return made;
}

bool drafter_agrees(const ComparedDrafter& drafter, const Weights& target, const Kernels& kernels,
                    std::span<const bf16> taps, uint32_t anchor, const CompareOptions& options) {
    const DrafterShape& shape = drafter.weights.shape;
    const uint32_t columns = drafter.weights.fc.columns;
    const auto rows = static_cast<uint32_t>(taps.size() / columns);
    const uint32_t with_block = std::min(rows, kDecodeRowsMax), before = rows - with_block;
    const Twin twin = twin_of(drafter, target, taps, anchor);

    PlanRequest request;
    request.shape = drafter.packed.shape;
    request.ranks = options.ranks;
    request.workers = options.workers;
    request.rows = 0;
    request.context = kChunkKeys;
    request.draft = {.context_rows = kStepRowsMax,
                     .taps = static_cast<uint32_t>(shape.taps.size())};
    const Program context = plan(request);
    request.draft->context_rows = kDecodeRowsMax;
    request.rows = shape.block;
    const Program block = plan(request);
    fmt::print("\nthe drafter: {} rows of context, then {} with a block of {} behind token {}\n\n",
               before, with_block, shape.block, anchor);

    Steps steps(request.shape, request.ranks, shape, taps, anchor);
    const auto judge = [&](const Executor& executor, uint32_t tile) {
        return judge_tile(executor, tile, steps.now().context, twin);
    };
    bool agree = true;
    if (before > 0) {
        agree = machines_agree(
            {context, drafter.packed, kernels, [&] { return steps.context(before); }, judge},
            options.tolerance, UINT32_MAX);
        fmt::print("\n");
    }
    // The cache that the block finds is what the debug machine leaves, which was compared above.
    SingleMachine reader(context, drafter.packed, kernels);
    const auto block_step = [&] {
        const StepInput first = steps.context(before);
        if (before > 0) reader.step(first);
        return steps.block(before);
    };
    return machines_agree({block, drafter.packed, kernels, block_step, judge}, options.tolerance,
                          UINT32_MAX) &&
           agree;
}

}  // namespace tessera
