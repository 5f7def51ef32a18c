// The executor's tiles of attention, the drafter's among them: projections that end in the cache,
// the mix over its keys, the projection back.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "runtime/execute.h"
#include "runtime/spans.h"

namespace tessera {
namespace {

// Two dims that turn together, rounded before and after as the model stores them.
std::pair<float, float> rotated(const float* in, const float* angle) {
    const float low = round_bf16(in[0]), high = round_bf16(in[1]);
    return {round_bf16(low * angle[0] - high * angle[1]),
            round_bf16(high * angle[0] + low * angle[1])};
}

}  // namespace

void Executor::qkv(const Tile& tile, Scratch& scratch) {
    const Buffers& at = at_[tile.rank];
    const PackedMatrix& matrix = layer(tile).qkv;
    for (uint32_t row = 0; row < step_.rows(); ++row) scratch.rows[row] = at.normed.row(row);
    in_spans(tile.begin, tile.end, [&](Span units) {
        multiply(matrix, units, scratch, step_.rows(), scratch.out.data(), kSpanRows);
        const Span rows{units.begin * kUnitRows, std::min(units.end * kUnitRows, matrix.rows)};
        for (uint32_t row = 0; row < step_.rows(); ++row)
            place_qkv(tile, row, rows, scratch.out.data() + row * kSpanRows);
    });
}

// Outputs [begin, end) of the projection of one row, head by head.
void Executor::place_qkv(const Tile& tile, uint32_t row, Span rows, const float* out) {
    const AttentionShape& a = shape_.attention(tile.layer);
    const AttentionPart part = attention_part(a, tile.rank, program_.request.ranks);
    const uint32_t q_rows = part.heads.count() * a.head_dim;
    const uint32_t k_rows = part.kv_heads.count() * a.head_dim;
    const uint32_t position = step_.positions[row];
    const float* const angles =
        at_[tile.rank].angles.row(row) + (a.window == 0 ? 0 : shape_.full.rotary_dims);

    for (uint32_t at = rows.begin; at < rows.end;) {
        const bool is_v = at >= q_rows + k_rows;
        const uint32_t section = at < q_rows ? 0 : is_v ? q_rows + k_rows : q_rows;
        const uint32_t dim = is_v ? a.v_head_dim : a.head_dim;
        const uint32_t head = (at - section) / dim, first = (at - section) % dim;
        const Span dims{first, std::min(dim, first + rows.end - at)};
        const float* const in = out + (at - rows.begin) - first;  // in[d] is the head's dim d
        at += dims.count();

        if (section == 0) {
            place_query(a, in, dims, angles, at_[tile.rank].query.row(row) + size_t{head} * dim);
            continue;
        }
        const KvSpan kv = step_.caches[row]->at(tile.rank, tile.layer, head, position);
        is_v ? place_value(a, in, dims, kv, position)
             : place_key(a, in, dims, angles, kv, position);
    }
}

void Executor::place_query(const AttentionShape& a, const float* in, Span dims, const float* angles,
                           float* to) const {
    const uint32_t turning = std::max(dims.begin, std::min(dims.end, a.rotary_dims));
    for (uint32_t d = dims.begin; d < turning; d += 2)
        std::tie(to[d], to[d + 1]) = rotated(in + d, angles + d);
    for (uint32_t d = turning; d < dims.end; ++d) to[d] = round_bf16(in[d]);
}

void Executor::place_key(const AttentionShape& a, const float* in, Span dims, const float* angles,
                         const KvSpan& kv, uint32_t position) const {
    // In a key tile two dims of one position stand together.
    bf16* const to = kv.keys + position % kv.ring / kUnitRows * key_tile_elements(a.head_dim) +
                     2 * (position % kUnitRows);
    const auto place = [&](uint32_t d) -> bf16& { return to[d / 2 * (2 * kUnitRows) + d % 2]; };
    const uint32_t turning = std::max(dims.begin, std::min(dims.end, a.rotary_dims));
    for (uint32_t d = dims.begin; d < turning; d += 2) {
        const auto [low, high] = rotated(in + d, angles + d);
        place(d) = to_bf16(low);
        place(d + 1) = to_bf16(high);
    }
    for (uint32_t d = turning; d < dims.end; ++d) place(d) = to_bf16(in[d]);
}

void Executor::place_value(const AttentionShape& a, const float* in, Span dims, const KvSpan& kv,
                           uint32_t position) const {
    bf16* const to = kv.values + size_t{position % kv.ring} * value_row_elements(a.v_head_dim);
    for (uint32_t d = dims.begin; d < dims.end; ++d)
        to[d] = to_bf16(shape_.value_scale * round_bf16(in[d]));
}

Span Executor::seen(uint32_t row, const AttentionShape& a) const {
    const uint32_t position = step_.positions[row];
    const bool draft = program_.request.draft.has_value();
    const uint32_t first = a.window != 0 && position >= a.window ? position - a.window + 1 : 0;
    return {std::max(first, step_.context.seen_from),
            (draft ? step_.positions.back() : position) + 1};
}

void Executor::attend(const Tile& tile, Scratch& scratch) {
    const AttentionShape& a = shape_.attention(tile.layer);
    const Buffers& at = at_[tile.rank];
    const uint32_t heads = attention_part(a, tile.rank, program_.request.ranks).heads.count();
    const uint32_t chunks = chunks_max(program_.request);
    const auto width = static_cast<uint32_t>(value_row_elements(a.v_head_dim));
    AttendTask task{};
    task.heads = tile.end - tile.begin;
    task.head_dim = a.head_dim;
    task.v_head_dim = a.v_head_dim;
    task.scale = 1.0f / std::sqrt(static_cast<float>(a.head_dim));
    task.scratch = scratch.scores.data();
    for (uint32_t row = 0; row < step_.rows(); ++row) {
        const auto [first, end] = seen(row, a);
        task.query = at.query.row(row) + size_t{tile.begin} * a.head_dim;
        const auto read = [&, row](uint32_t from, uint32_t to) {
            const KvSpan kv = step_.caches[row]->at(tile.rank, tile.layer, tile.slot, from);
            task.keys = kv.keys;
            task.values = kv.values;
            task.ring = kv.ring;
            task.first = from;
            task.last = to - 1;
            kernels_.attend(task);
        };
        if (is_one_chunk(program_.request, tile.layer)) {
            task.out = scratch.mixed.data();
            task.out_stride = width;
            task.highest = scratch.highest.data();
            task.total = scratch.total.data();
            task.number_stride = 1;
            read(first, end);
            for (uint32_t h = 0; h < task.heads; ++h) {
                const uint32_t head = tile.begin + h;
                kernels_.merge(task.out + size_t{h} * width, task.highest + h, task.total + h, 1, 0,
                               0, a.sink ? &layer(tile).sink[head] : nullptr, a.v_head_dim,
                               at.mixed.row(row) + size_t{head} * a.v_head_dim);
            }
            if (tile.end == heads) pad_row(at.mixed.row(row), heads * a.v_head_dim);
            continue;
        }
        // A row of parts: values [heads, chunks, width], then highest and totals [heads, chunks].
        float* const values = at.parts.row(row);
        float* const numbers = values + size_t{heads} * chunks * width;
        for (uint32_t c = first / kChunkKeys; c * kChunkKeys < end; ++c) {
            if (c % tile.shares != tile.part) continue;
            const size_t index = size_t{tile.begin} * chunks + c;
            task.out = values + index * width;
            task.out_stride = size_t{chunks} * width;
            task.highest = numbers + index;
            task.total = numbers + size_t{heads} * chunks + index;
            task.number_stride = chunks;
            read(std::max(first, c * kChunkKeys), std::min(end, (c + 1) * kChunkKeys));
        }
    }
}

void Executor::merge(const Tile& tile) {
    const AttentionShape& a = shape_.attention(tile.layer);
    const Buffers& at = at_[tile.rank];
    const uint32_t heads = attention_part(a, tile.rank, program_.request.ranks).heads.count();
    const uint32_t chunks = chunks_max(program_.request);
    const size_t width = value_row_elements(a.v_head_dim);
    for (uint32_t row = 0; row < step_.rows(); ++row) {
        const auto [first, last] = seen(row, a);
        const uint32_t begin = first / kChunkKeys, end = (last - 1) / kChunkKeys + 1;
        const float* const values = at.parts.row(row);
        const float* const numbers = values + heads * chunks * width;
        for (uint32_t head = tile.begin; head < tile.end; ++head) {
            const size_t index = size_t{head} * chunks + begin;
            kernels_.merge(values + index * width, numbers + index,
                           numbers + size_t{heads} * chunks + index, end - begin, width, 1,
                           a.sink ? &layer(tile).sink[head] : nullptr, a.v_head_dim,
                           at.mixed.row(row) + size_t{head} * a.v_head_dim);
        }
        if (tile.end == heads) pad_row(at.mixed.row(row), heads * a.v_head_dim);
    }
}

void Executor::output(const Tile& tile, Scratch& scratch) {
    const Buffers& at = at_[tile.rank];
    for (uint32_t row = 0; row < step_.rows(); ++row) scratch.rows[row] = at.mixed.row(row);
    in_spans(tile.begin, tile.end, [&](Span units) {
        multiply(layer(tile).o, units, scratch, step_.rows(), scratch.out.data(), kSpanRows);
        keep(tile, kPartialOutput, at.residual, step_.rows(), units, scratch.out.data());
    });
}

// ------------------------------------------------------------------ a drafter's context and heads

void Executor::gather(const Tile& tile) {
    const Buffers& at = at_[tile.rank];
    const Span columns =
        share(program_.request.draft->taps * shape_.hidden, tile.rank, program_.request.ranks);
    for (uint32_t row = tile.begin; row < std::min(tile.end, step_.context.rows()); ++row) {
        float* const to = at.tapped.row(row);
        const bf16* const from = step_.context.taps[row] + columns.begin;
        for (uint32_t i = 0; i < columns.count(); ++i) to[i] = to_float(from[i]);
        pad_row(to, columns.count());
        std::fill_n(at.fused.row(row), shape_.hidden, 0.0f);
        turn_angles(step_.context.position + row, at.context_angles.row(row));
    }
}

void Executor::fuse(const Tile& tile, Scratch& scratch) {
    const Buffers& at = at_[tile.rank];
    const uint32_t rows = step_.context.rows();
    for (uint32_t row = 0; row < rows; ++row) scratch.rows[row] = at.tapped.row(row);
    in_spans(tile.begin, tile.end, [&](Span units) {
        multiply(weights_.ranks[tile.rank].fuse, units, scratch, rows, scratch.out.data(),
                 kSpanRows);
        keep(tile, kPartialFuse, at.fused, rows, units, scratch.out.data());
    });
}

template <typename Each>
void Executor::in_heads(const Tile& tile, const PackedMatrix& matrix, uint32_t rows,
                        Scratch& scratch, Each each) const {
    const uint32_t head = head_units(program_.request, tile.layer);
    const uint32_t step = std::max(kSpanUnits / head, 1u) * head;
    for (uint32_t begin = tile.begin; begin < tile.end; begin += step) {
        const Span units{begin, std::min(begin + step, tile.end)};
        multiply(matrix, units, scratch, rows, scratch.out.data(), size_t{step} * kUnitRows);
        for (uint32_t row = 0; row < rows; ++row)
            each(row, Span{units.begin * kUnitRows, std::min(units.end * kUnitRows, matrix.rows)},
                 scratch.out.data() + size_t{row} * step * kUnitRows);
    }
}

void Executor::query(const Tile& tile, Scratch& scratch) {
    const Buffers& at = at_[tile.rank];
    const AttentionShape& a = shape_.attention(tile.layer);
    for (uint32_t row = 0; row < step_.rows(); ++row) scratch.rows[row] = at.normed.row(row);
    in_heads(tile, layer(tile).query, step_.rows(), scratch,
             [&](uint32_t row, Span rows, const float* out) {
                 const float* const angles =
                     at.angles.row(row) + (a.window == 0 ? 0 : shape_.full.rotary_dims);
                 for (uint32_t r = rows.begin; r < rows.end; r += a.head_dim, out += a.head_dim) {
                     for (uint32_t d = 0; d < a.head_dim; ++d) scratch.head[d] = round_bf16(out[d]);
                     kernels_.norm(scratch.head.data(), layer(tile).query_norm.data(), a.head_dim,
                                   shape_.norm_epsilon, scratch.normed_head.data());
                     place_query(a, scratch.normed_head.data(), {0, a.head_dim}, angles,
                                 at.query.row(row) + r);
                 }
             });
}

// The block's rows, then the context's: those are read once and stay.
void Executor::keys(const Tile& tile, Scratch& scratch) {
    const Buffers& at = at_[tile.rank];
    const AttentionShape& a = shape_.attention(tile.layer);
    const AttentionPart part = attention_part(a, tile.rank, program_.request.ranks);
    const uint32_t k_rows = part.kv_heads.count() * a.head_dim;
    const uint32_t block = step_.rows(), all = block + step_.context.rows();
    for (uint32_t row = 0; row < all; ++row)
        scratch.rows[row] = row < block ? at.normed.row(row) : at.context.row(row - block);
    const auto place = [&](uint32_t row, Span rows, const float* out) {
        const bool of_context = row >= block;
        const uint32_t position =
            of_context ? step_.context.position + row - block : step_.positions[row];
        const KvCache& cache = of_context ? *step_.context.cache : *step_.caches[row];
        const float* const angles =
            (of_context ? at.context_angles.row(row - block) : at.angles.row(row)) +
            (a.window == 0 ? 0 : shape_.full.rotary_dims);
        for (uint32_t r = rows.begin; r < rows.end;) {
            const bool is_v = r >= k_rows;
            const uint32_t dim = is_v ? a.v_head_dim : a.head_dim;
            const uint32_t head = (is_v ? r - k_rows : r) / dim;
            const uint32_t first = (is_v ? r - k_rows : r) % dim;
            const Span dims{first, std::min(dim, first + rows.end - r)};
            const float* const in = out + (r - rows.begin) - first;
            r += dims.count();
            const KvSpan kv = cache.at(tile.rank, tile.layer, head, position);
            if (is_v) {
                place_value(a, in, dims, kv, position);
                continue;
            }
            for (uint32_t d = 0; d < dim; ++d) scratch.head[d] = round_bf16(in[d]);
            kernels_.norm(scratch.head.data(), layer(tile).key_norm.data(), dim,
                          shape_.norm_epsilon, scratch.normed_head.data());
            place_key(a, scratch.normed_head.data(), dims, angles, kv, position);
        }
    };
    in_heads(tile, layer(tile).keys, all, scratch, place);
}

}  // namespace tessera
