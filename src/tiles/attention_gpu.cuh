// Attention on the GPU: 16 queries of one kv head (its query heads times rows of one sequence) over
// one chunk of keys, by all warps. Keys and values are bf16 and lie in tiles of 16 positions, so
// that a lane finds the operands of its mma as 32-bit words:
//
//   keys    [head_dim / 2][16 positions][2 dims]     scores:  queries x dims times dims x keys
//   values  [8 pairs of positions][v_head_dim][2]    outputs: queries x keys times keys x dims
//
// A probability is multiplied as two bf16 terms, which leaves an error of 2^-17 of it. A warp has
// sums for 32 dims of the values: where there are more, warps share keys. It takes the tiles of a
// chunk that are its own by their place in the chunk, and chunks begin at fixed positions: a
// query's sums are made in the same order whoever is beside it.
#pragma once

#include <cstdint>

#include "tiles/attention_gpu.h"
#include "tiles/matrix_gpu.cuh"
#include "tiles/rows_gpu.cuh"

namespace tessera::gpu {

inline constexpr float kLog2e = 1.4426950408889634f;

struct AttentionTile {
    const uint32_t* keys;    // head_dim / 2, kKeyStride
    const uint32_t* values;  // 8, value_stride(v_head_dim)
    uint32_t position;       // of its first key
};

// One of `threads` threads asks for its share of a tile, from the cache to `to` [tile_words]: all
// of it is in flight at once. Read from the cache word by word where an mma wants them, a tile was
// sixteen trips to the L2, one after the other.
__device__ inline void ask_for_tile(const std::byte* keys, const std::byte* values,
                                    uint32_t head_dim, uint32_t v_head_dim, uint32_t* to,
                                    uint32_t thread, uint32_t threads) {
    const uint32_t of_keys = head_dim * 2, of_values = v_head_dim * 2;  // pieces
    const uint32_t row_pieces = v_head_dim / 4;
#pragma unroll 1
    for (uint32_t piece = thread; piece < of_keys; piece += threads)
        copy_async(to + piece / 4 * kKeyStride + piece % 4 * 4, keys + piece * 16);
    to += key_words(head_dim);
#pragma unroll 1
    for (uint32_t piece = thread; piece < of_values; piece += threads) {
        const uint32_t row = divide(piece, row_pieces);
        copy_async(to + row * value_stride(v_head_dim) + (piece - row * row_pieces) * 4,
                   values + piece * 16);
    }
}

// A query's bounds: keys [first, end) are seen.
struct Seen {
    uint32_t first, end;
};

// What one warp has of its 16 queries: rows lane / 4 and lane / 4 + 8. Scores are in units of
// log 2.
struct AttentionSums {
    float highest[2] = {-INFINITY, -INFINITY};
    float total[2] = {0, 0};
    Sums out[kValueDims / 8];  // by 8 dims: .at[0..1] of the first row, [2..3] of the second
};

// 16 queries as operands, in shared memory: [head_dim / 16][32 lanes], for all warps. One warp
// writes the operands of one `step` of 16 dims: row `low` is lane / 4's, `high` the one 8 further;
// null: zeros.
__device__ inline void store_queries(const uint16_t* low, const uint16_t* high, uint32_t step,
                                     uint4* queries) {
    const uint32_t lane = threadIdx.x % 32, dim = step * 16 + lane % 4 * 2;
    const auto word = [&](const uint16_t* row, uint32_t at) {
        return row != nullptr ? *reinterpret_cast<const uint32_t*>(row + at) : 0u;
    };
    queries[step * 32 + lane] = {word(low, dim), word(high, dim), word(low, dim + 8),
                                 word(high, dim + 8)};
}

// Adds one tile of 16 keys, to sums of value dims [first_dim, first_dim + kValueDims). `scale` is
// that of a score times log2(e). All lanes of the warp.
__device__ inline void attend_tile(const uint4* queries, const AttentionTile& tile,
                                   const Seen seen[2], uint32_t head_dim, uint32_t v_head_dim,
                                   uint32_t first_dim, float scale, AttentionSums& sums) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    Sums scores[2];
#pragma unroll 4
    for (uint32_t step = 0; step * 16 < head_dim; ++step) {
        const uint32_t* const low = tile.keys + (8 * step + q) * kKeyStride + g;
        const uint32_t* const high = low + 4 * kKeyStride;
        const uint4 a = queries[step * 32 + lane];
        mma(scores[0], a.x, a.y, a.z, a.w, low[0], high[0]);
        mma(scores[1], a.x, a.y, a.z, a.w, low[8], high[8]);
    }
    uint32_t p_high[2][2], p_low[2][2];  // of each half of the keys, of each row
#pragma unroll
    for (uint32_t row = 0; row < 2; ++row) {
        float highest = sums.highest[row];
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            float& score = scores[i / 2].at[2 * row + i % 2];
            const uint32_t position = tile.position + i / 2 * 8 + 2 * q + i % 2;
            score =
                position >= seen[row].first && position < seen[row].end ? score * scale : -INFINITY;
            highest = fmaxf(highest, score);
        }
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
        // Nothing seen so far: nothing to make smaller, and no key counts.
        const float base = highest == -INFINITY ? 0.0f : highest;
        const float fade = exp2_approx(sums.highest[row] - base);
        float total = 0;
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            float p[2], rest[2];
#pragma unroll
            for (uint32_t i = 0; i < 2; ++i) {
                p[i] = exp2_approx(scores[half].at[2 * row + i] - base);
                total += p[i];
                rest[i] = p[i] - round_to_bf16(p[i]);
            }
            p_high[half][row] = pack_bf16(p[0], p[1]);
            p_low[half][row] = pack_bf16(rest[0], rest[1]);
        }
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        sums.total[row] = sums.total[row] * fade + total;
        sums.highest[row] = highest;
#pragma unroll
        for (uint32_t n = 0; n < kValueDims / 8; ++n) {
            sums.out[n].at[2 * row] *= fade;
            sums.out[n].at[2 * row + 1] *= fade;
        }
    }
    const uint32_t* const values = tile.values + first_dim + g;
    const uint32_t stride = value_stride(v_head_dim);
    const uint32_t dims = min(kValueDims, v_head_dim - first_dim);
#pragma unroll
    for (uint32_t n = 0; n < kValueDims / 8; ++n) {
        if (n * 8 >= dims) break;
        const uint32_t low = values[q * stride + n * 8];
        const uint32_t high = values[(4 + q) * stride + n * 8];
        mma(sums.out[n], p_high[0][0], p_high[0][1], p_high[1][0], p_high[1][1], low, high);
        mma(sums.out[n], p_low[0][0], p_low[0][1], p_low[1][0], p_low[1][1], low, high);
    }
}

__device__ inline void store_part(const AttentionSums& sums, uint32_t v_head_dim,
                                  uint32_t first_dim, float* part) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
    for (uint32_t row = 0; row < 2; ++row) {
        const uint32_t query = g + 8 * row;
        if (q == 0 && first_dim == 0) {
            part[query] = sums.highest[row];
            part[kQueries + query] = sums.total[row];
        }
        float* const out = part + 2 * kQueries + query * v_head_dim + first_dim + 2 * q;
#pragma unroll
        for (uint32_t n = 0; n < kValueDims / 8; ++n) {
            if (n * 8 >= v_head_dim - first_dim) break;
            out[n * 8] = sums.out[n].at[2 * row];
            out[n * 8 + 1] = sums.out[n].at[2 * row + 1];
        }
    }
}

// Eight values of query `query`, from dim `dim`, of `count` parts in their order, with the numbers
// that the merged part has of the query. The parts' numbers are read at `numbers`, `number_stride`
// apart.
struct Merged {
    float highest, total;
    float4 value[2];
};
__device__ inline Merged merge_parts(const float* numbers, uint32_t number_stride,
                                     const float* parts, uint32_t stride, uint32_t count,
                                     uint32_t query, uint32_t dim, uint32_t v_head_dim) {
    Merged m{-INFINITY, 0, {}};
#pragma unroll 2
    for (uint32_t i = 0; i < count; ++i)
        m.highest = fmaxf(m.highest, numbers[i * number_stride + query]);
    if (m.highest == -INFINITY) return m;
    const float* const values = parts + 2 * kQueries + query * v_head_dim + dim;
#pragma unroll 4
    for (uint32_t i = 0; i < count; ++i) {
        const float share = exp2_approx(numbers[i * number_stride + query] - m.highest);
        m.total += numbers[i * number_stride + kQueries + query] * share;
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            const float4 v = reinterpret_cast<const float4*>(values + i * stride)[half];
            m.value[half].x += v.x * share;
            m.value[half].y += v.y * share;
            m.value[half].z += v.z * share;
            m.value[half].w += v.w * share;
        }
    }
    return m;
}

// What the merged values are multiplied by; a sink is one more logit without a value (-infinity:
// none).
__device__ inline float output_share(const Merged& m, float sink) {
    const float top = fmaxf(m.highest, sink * kLog2e);
    const float share = exp2_approx(m.highest - top);
    return share / (m.total * share + exp2_approx(sink * kLog2e - top));
}

}  // namespace tessera::gpu
