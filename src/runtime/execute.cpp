#include "runtime/execute.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/topology.h"
#include "runtime/spans.h"

namespace tessera {

std::vector<float> rotary_frequencies(const AttentionShape& a) {
    std::vector<float> all;
    for (uint32_t i = 0; i < a.rotary_dims / 2; ++i) {
        const float exponent = static_cast<float>(2 * i) / static_cast<float>(a.rotary_dims);
        all.push_back(1.0f / std::pow(a.rope_theta, exponent));
    }
    return all;
}

Scratch::Scratch(const PlanRequest& r) {
    const size_t pairs = size_t{r.rows} * r.shape.experts_per_token + r.context_rows();
    const uint32_t heads = std::max(r.shape.full.heads, r.shape.sliding.heads);
    const uint32_t values =
        padded(std::max(r.shape.full.v_head_dim, r.shape.sliding.v_head_dim), kUnitRows);
    const uint32_t head_dim = std::max(r.shape.full.head_dim, r.shape.sliding.head_dim);
    out.resize(pairs * std::max(kSpanRows, r.draft ? head_dim : 0));
    sum.resize(pairs * kSpanRows);
    head.resize(head_dim);
    normed_head.resize(head_dim);
    rows.resize(pairs);
    blocks.resize(pairs);
    scores.resize(heads * kScoreStride);
    mixed.resize(size_t{heads} * values);
    highest.resize(heads);
    total.resize(heads);
}

Executor::Executor(const Program& program, const PackedWeights& weights, const Kernels& kernels)
    : program_(program),
      weights_(weights),
      kernels_(kernels),
      shape_(program.request.shape),
      full_frequencies_(rotary_frequencies(shape_.full)),
      sliding_frequencies_(rotary_frequencies(shape_.sliding)),
      live_(shape_.layers) {
    const PlanRequest& r = program.request;
    CHECK(weights.ranks.size() == r.ranks);
    const Topology here = topology();
    for (uint32_t rank = 0; rank < r.ranks; ++rank) {
        arenas_.emplace_back(program.arena_bytes, memory_node(here, rank, r.ranks));
        const auto view = [&]<typename T>(View<T>& to, Value value, uint32_t which = 0) {
            const Buffer& b = program.buffers[find_buffer(program, value, rank, which)];
            to = {arenas_[rank].data() + b.offset, b.row_bytes};
        };
        Buffers& at = at_.emplace_back();
        if (r.draft) {
            view(at.tapped, Value::tapped);
            view(at.fused, Value::fused);
            view(at.context, Value::context);
            view(at.context_angles, Value::context_angles);
        }
        view(at.residual, Value::residual);
        view(at.angles, Value::angles);
        view(at.normed, Value::normed);
        view(at.query, Value::query);
        view(at.parts, Value::parts);
        view(at.mixed, Value::mixed);
        view(at.scores, Value::scores);
        view(at.gated, Value::gated);
        view(at.logits, Value::logits);
        if (r.ranks > 1) {
            view(at.partial[0], Value::partial, kPartialOutput);
            view(at.partial[1], Value::partial, kPartialDown);
            view(at.partial[2], Value::partial, kPartialFuse);
        }
        if (r.blocks != Blocks::none) {
            view(at.normed_blocks, Value::normed_blocks);
            view(at.gated_blocks, Value::gated_blocks);
        }
        if (shape_.experts == 0) continue;
        View<std::byte> routes{};
        view(routes, Value::routes);
        at.routes = routes_at(routes.data, route_shape());
    }
}

void Executor::run(const Tile& tile, Scratch& scratch) {
    switch (tile.op) {
        case Op::embed:
            return embed(tile);
        case Op::norm:
            return norm(tile);
        case Op::qkv:
            return qkv(tile, scratch);
        case Op::attend:
            return attend(tile, scratch);
        case Op::merge:
            return merge(tile);
        case Op::output:
            return output(tile, scratch);
        case Op::exchange:
            return exchange(tile, scratch);
        case Op::router:
            return router(tile, scratch);
        case Op::route:
            return route_rows(tile);
        case Op::gate_up:
            return gate_up(tile, scratch);
        case Op::down:
            return down(tile, scratch);
        case Op::head:
            return head(tile, scratch);
        case Op::gather:
            return gather(tile);
        case Op::fuse:
            return fuse(tile, scratch);
        case Op::query:
            return query(tile, scratch);
        case Op::keys:
            return keys(tile, scratch);
    }
}

std::span<const float> Executor::logits(uint32_t rank, uint32_t row) const {
    return {at_[rank].logits.row(row), weights_.ranks[rank].vocab.count()};
}

// ------------------------------------------------------------------ the stream

void Executor::turn_angles(uint32_t position, float* angles) const {
    for (const std::vector<float>* kind : {&full_frequencies_, &sliding_frequencies_}) {
        for (const float frequency : *kind) {
            const float turned = static_cast<float>(position) * frequency;
            *angles++ = std::cos(turned);
            *angles++ = std::sin(turned);
        }
    }
}

void Executor::embed(const Tile& tile) {
    const Buffers& at = at_[tile.rank];
    for (uint32_t row = tile.begin; row < std::min(tile.end, step_.rows()); ++row) {
        float* const to = at.residual.row(row);
        if (program_.request.draft && row > 0) {
            std::ranges::copy(weights_.mask, to);
        } else {
            CHECK(step_.tokens[row] < shape_.vocab);
            const bf16* from = &weights_.embedding[uint64_t{step_.tokens[row]} * shape_.hidden];
            for (uint32_t i = 0; i < shape_.hidden; ++i) to[i] = to_float(from[i]);
        }
        turn_angles(step_.positions[row], at.angles.row(row));
    }
}

void Executor::norm(const Tile& tile) {
    const Buffers& at = at_[tile.rank];
    const PackedRank& rank = weights_.ranks[tile.rank];
    const bool of_context = tile.slot == kNormContext;
    const std::span<const float> gain = tile.slot == kNormInput  ? layer(tile).input_norm
                                        : tile.slot == kNormPost ? layer(tile).post_norm
                                        : of_context             ? rank.context_norm
                                                                 : rank.norm;
    const uint32_t rows = of_context ? step_.context.rows() : step_.rows();
    for (uint32_t row = tile.begin; row < std::min(tile.end, rows); ++row) {
        const float* const from = (of_context ? at.fused : at.residual).row(row);
        float* const out = (of_context ? at.context : at.normed).row(row);
        kernels_.norm(from, gain.data(), shape_.hidden, shape_.norm_epsilon, out);
        pad_row(out, shape_.hidden);
        if (tile.slot == kNormPost)
            quantize(out, padded(shape_.hidden, kPanelColumns) / kMxBlock, tile,
                     at.normed_blocks.row(row));
        // The stream holds bf16 values: nothing is lost.
        const bool kept = tile.part > 0 && !step_.taps.empty() && step_.taps[row] != nullptr;
        if (!kept || tile.rank > 0) continue;
        bf16* const tap = step_.taps[row] + size_t{tile.part - 1u} * shape_.hidden;
        for (uint32_t i = 0; i < shape_.hidden; ++i) tap[i] = to_bf16(from[i]);
    }
}

void Executor::quantize(const float* x, uint32_t count, const Tile& tile, std::byte* out) const {
    switch (blocks(tile)) {
        case Blocks::none:
            return;
        case Blocks::int16:
            return kernels_.quantize_int16(x, count, reinterpret_cast<Int16Block*>(out));
        case Blocks::int8:
            return kernels_.quantize_int8(x, count, reinterpret_cast<Int8Block*>(out));
    }
}

void Executor::multiply(const PackedMatrix& matrix, Span units, const Scratch& scratch,
                        uint32_t rows, float* out, size_t stride) const {
    const std::byte* const weights = matrix.unit(units.begin);
    if (matrix.format != Format::mxfp4)
        return kernels_.multiply(matrix.format, weights, units.count(), matrix.panels(),
                                 {scratch.rows.data(), rows}, out, stride);
    // Pointers to blocks are pointers to bytes of another type.
    if (program_.request.blocks == Blocks::int8)
        return kernels_.multiply_int8(
            weights, units.count(), matrix.panels(),
            {reinterpret_cast<const Int8Block* const*>(scratch.blocks.data()), rows}, out, stride);
    CHECK(program_.request.blocks == Blocks::int16);
    kernels_.multiply_int16(
        weights, units.count(), matrix.panels(),
        {reinterpret_cast<const Int16Block* const*>(scratch.blocks.data()), rows}, out, stride);
}

void Executor::keep(const Tile& tile, uint32_t partial, const View<float>& stream, uint32_t rows,
                    Span units, const float* sums) {
    const Buffers& at = at_[tile.rank];
    const uint32_t column = units.begin * kUnitRows;
    const uint32_t count = std::min(units.count() * kUnitRows, shape_.hidden - column);
    for (uint32_t row = 0; row < rows; ++row, sums += kSpanRows) {
        if (program_.request.ranks == 1) {
            kernels_.add_residual(sums, count, stream.row(row) + column);
        } else {
            std::memcpy(at.partial[partial].row(row) + column, sums, count * sizeof(float));
        }
    }
}

void Executor::exchange(const Tile& tile, Scratch& scratch) {
    const bool of_context = tile.slot == kPartialFuse;
    const Buffers& at = at_[tile.rank];
    const View<float>& stream = of_context ? at.fused : at.residual;
    const uint32_t rows = of_context ? step_.context.rows() : step_.rows();
    in_spans(tile.begin, tile.end, [&](Span units) {
        const uint32_t column = units.begin * kUnitRows;
        const uint32_t count = std::min(units.count() * kUnitRows, shape_.hidden - column);
        for (uint32_t row = 0; row < rows; ++row) {
            std::fill_n(scratch.sum.begin(), count, 0.0f);
            for (const Buffers& from : at_)
                kernels_.add_weighted(from.partial[tile.slot].row(row) + column, 1.0f, count,
                                      scratch.sum.data());
            kernels_.add_residual(scratch.sum.data(), count, stream.row(row) + column);
        }
    });
}

// ------------------------------------------------------------------ experts

void Executor::router(const Tile& tile, Scratch& scratch) {
    const Buffers& at = at_[tile.rank];
    for (uint32_t row = 0; row < step_.rows(); ++row) scratch.rows[row] = at.normed.row(row);
    multiply(layer(tile).router, {tile.begin, tile.end}, scratch, step_.rows(),
             at.scores.row(0) + tile.begin * kUnitRows, at.scores.row_bytes / sizeof(float));
}

void Executor::route_rows(const Tile& tile) {
    const Buffers& at = at_[tile.rank];
    const RouteRule rule{layer(tile).correction_bias.data(), shape_.normalize_top_k,
                         shape_.routed_scale};
    route(at.scores.row(0), at.scores.row_bytes / sizeof(float), step_.rows(), route_shape(), rule,
          at.routes);
    if (tile.rank == 0) live_[tile.layer] = *at.routes.live;
}

void Executor::gate_up(const Tile& tile, Scratch& scratch) {
    const Buffers& at = at_[tile.rank];
    const Routes& routes = at.routes;
    const bool moe = is_moe(tile), quantized = blocks(tile) != Blocks::none;
    if (moe && tile.slot >= *routes.live) return;
    const uint32_t begin = moe ? routes.first[tile.slot] : 0;
    const uint32_t count = moe ? routes.first[tile.slot + 1] - begin : step_.rows();
    // Which row of `gated` the i-th row of this slot is, and which token's.
    const auto gated_row = [&](uint32_t i) { return moe ? routes.pair[begin + i] : i; };
    for (uint32_t i = 0; i < count; ++i) {
        const uint32_t token = moe ? gated_row(i) / shape_.experts_per_token : i;
        scratch.rows[i] = at.normed.row(token);
        if (quantized) scratch.blocks[i] = at.normed_blocks.row(token);
    }
    const PackedFeedForward& weights = expert(tile, tile.slot);
    const uint32_t width = weights.down.columns;
    in_spans(2 * tile.begin, 2 * tile.end, [&](Span units) {
        multiply(weights.gate_up, units, scratch, count, scratch.out.data(), kSpanRows);
        const uint32_t column = units.begin / 2 * kUnitRows;
        const uint32_t columns = std::min(units.count() / 2 * kUnitRows, width - column);
        const bool at_end = column + columns == width;
        for (uint32_t i = 0; i < count; ++i) {
            const float* const out = scratch.out.data() + i * kSpanRows;
            float* const row = at.gated.row(gated_row(i));
            for (uint32_t d = 0; d < columns; d += kUnitRows) {
                kernels_.gate(out + 2 * d, out + 2 * d + kUnitRows,
                              std::min(kUnitRows, columns - d), row + column + d);
            }
            if (at_end) pad_row(row, width);
            if (!quantized) continue;
            const uint32_t end = at_end ? padded(width, kPanelColumns) : column + columns;
            quantize(
                row + column, (end - column) / kMxBlock, tile,
                at.gated_blocks.row(gated_row(i)) + column / kMxBlock * block_bytes(blocks(tile)));
        }
    });
}

void Executor::down(const Tile& tile, Scratch& scratch) {
    const Buffers& at = at_[tile.rank];
    const Routes& routes = at.routes;
    const bool quantized = blocks(tile) != Blocks::none;
    in_spans(tile.begin, tile.end, [&](Span units) {
        if (!is_moe(tile)) {
            for (uint32_t row = 0; row < step_.rows(); ++row) scratch.rows[row] = at.gated.row(row);
            multiply(layer(tile).dense.down, units, scratch, step_.rows(), scratch.out.data(),
                     kSpanRows);
            return keep(tile, kPartialDown, at.residual, step_.rows(), units, scratch.out.data());
        }
        std::fill_n(scratch.sum.begin(), step_.rows() * kSpanRows, 0.0f);
        // In ascending order of expert, which is the row's own order whoever is beside it.
        for (uint32_t slot = 0; slot < *routes.live; ++slot) {
            const uint32_t begin = routes.first[slot], count = routes.first[slot + 1] - begin;
            for (uint32_t i = 0; i < count; ++i) {
                scratch.rows[i] = at.gated.row(routes.pair[begin + i]);
                if (quantized) scratch.blocks[i] = at.gated_blocks.row(routes.pair[begin + i]);
            }
            multiply(expert(tile, slot).down, units, scratch, count, scratch.out.data(), kSpanRows);
            for (uint32_t i = 0; i < count; ++i) {
                const uint32_t pair = routes.pair[begin + i];
                kernels_.add_weighted(
                    scratch.out.data() + i * kSpanRows, routes.weight[pair],
                    units.count() * kUnitRows,
                    scratch.sum.data() + pair / shape_.experts_per_token * kSpanRows);
            }
        }
        keep(tile, kPartialDown, at.residual, step_.rows(), units, scratch.sum.data());
    });
}

void Executor::head(const Tile& tile, Scratch& scratch) {
    const Buffers& at = at_[tile.rank];
    const uint32_t first = step_.logits_from;
    if (first >= step_.rows()) return;
    const uint32_t count = step_.rows() - first;
    for (uint32_t i = 0; i < count; ++i) scratch.rows[i] = at.normed.row(first + i);
    multiply(weights_.ranks[tile.rank].head, {tile.begin, tile.end}, scratch, count,
             at.logits.row(first) + tile.begin * kUnitRows, at.logits.row_bytes / sizeof(float));
}

}  // namespace tessera
