// Attention on the GPU: 16 queries of one kv head (its query heads times rows of one sequence) over
// one chunk of keys. Keys and values are bf16 and lie in tiles of 16 positions, a tile a warp, so
// that a lane finds the operands of its mma in a few loads, all in flight together:
//
//   keys    [head_dim / 2][16 positions][2 dims]     scores:  queries x dims times dims x keys
//   values  [8 pairs of positions][v_head_dim][2]    outputs: queries x keys times keys x dims
//
// Which key or dim is which column of an mma is the lanes' own matter: scores of column n belong to
// key 2n of the first mma and to 2n + 1 of the second, so a lane reads two keys at once, and has
// the probabilities of pairs that values lie in; column n of four mma of values are dims 4n to
// 4n + 3, so it reads four dims at once and has the sums of eight that are neighbours.
//
// A probability is multiplied as two bf16 terms, which leaves an error of 2^-17 of it. Sums are in
// the warp's part in shared memory between its tiles, since registers hold keys. A warp takes the
// tiles of a chunk that are its own by their place in the chunk, and chunks begin at fixed
// positions: a query's sums are made in the same order whoever is beside it.
#pragma once

#include <cstdint>

#include "tiles/attention_gpu.h"
#include "tiles/matrix_gpu.cuh"
#include "tiles/rows_gpu.cuh"

namespace tessera::gpu {

inline constexpr float kLog2e = 1.4426950408889634f;

// A lane's keys of a tile: by 16 dims two pairs of dims of keys 2 * (lane / 4) and the next. Those
// of more dims than registers suffice for come to the first cache.
struct TileKeys {
    struct Pairs {
        uint2 low, high;
    };
    static constexpr uint32_t kSteps = kHeadDimMax / 16, kHeld = 8, kStepBytes = 512;

    const std::byte* tile;
    Pairs held[kHeld];

    // All are given a value whatever the dims: a register that may have none is taken for the whole
    // kernel.
    __device__ void load(const std::byte* from, uint32_t head_dim) {
        tile = from;
#pragma unroll
        for (uint32_t step = 0; step < kHeld; ++step)
            held[step] = step * 16 < head_dim ? read(step) : Pairs{};
        const uint32_t line = kHeld * kStepBytes + threadIdx.x % 32 * 128;
        if (line < head_dim / 16 * kStepBytes) ask_ahead(tile + line);
    }

    __device__ Pairs at(uint32_t step) const {
        return step < kHeld ? held[step] : read(step);
    }

  private:
    __device__ Pairs read(uint32_t step) const {
        const uint32_t lane = lane_now();
        const auto* const from =
            reinterpret_cast<const uint2*>(tile + step * kStepBytes) + lane % 4 * 8 + lane / 4;
        return {from[0], from[32]};
    }
};

// A query's bounds: keys [first, end) are seen.
struct Seen {
    uint32_t first, end;
};

// What one warp has of its 16 queries, rows lane / 4 and lane / 4 + 8, beside their values. Scores
// are in units of log 2.
struct AttentionSums {
    float highest[2] = {-INFINITY, -INFINITY};
    float total[2] = {0, 0};
};

// 16 queries as operands, in shared memory: [head_dim / 16][32 lanes], for all warps. One warp
// writes the operands of one `step` of 16 dims: row `low` is lane / 4's, `high` the one 8 further;
// null: zeros.
__device__ inline void store_queries(const uint16_t* low, const uint16_t* high, uint32_t step,
                                     uint4* queries) {
    const uint32_t lane = lane_now(), dim = step * 16 + lane % 4 * 2;
    const auto word = [&](const uint16_t* row, uint32_t at) {
        return row != nullptr ? *reinterpret_cast<const uint32_t*>(row + at) : 0u;
    };
    queries[step * 32 + lane] = {word(low, dim), word(high, dim), word(low, dim + 8),
                                 word(high, dim + 8)};
}

// Scores of two keys a column. In two halves, of alternate steps, they need too many registers.
struct TileScores {
    Sums of[2];

    __device__ TileScores(const uint4* queries, const TileKeys& keys, uint32_t head_dim) {
        const uint32_t lane = lane_now();
#pragma unroll
        for (uint32_t step = 0; step < TileKeys::kSteps; ++step) {
            if (step * 16 >= head_dim) break;
            const uint4 a = queries[step * 32 + lane];
            const auto [low, high] = keys.at(step);
            mma(of[0], a.x, a.y, a.z, a.w, low.x, high.x);
            mma(of[1], a.x, a.y, a.z, a.w, low.y, high.y);
        }
    }
};

// Adds a tile of 16 keys, of which the first is at `position`: to the warp's sums, and for `dims`
// of the values, which begin at `values`, to its part (that holds nothing yet if nothing was seen).
// `scale` is that of a score times log2(e). All lanes of the warp.
__device__ inline void attend_tile(const TileScores& scores, uint32_t position, const Seen seen[2],
                                   const std::byte* values, uint32_t v_head_dim, uint32_t dims,
                                   float scale, AttentionSums& sums, float* part) {
    const uint32_t lane = lane_now(), g = lane / 4, q = lane % 4;
    const bool first = sums.highest[0] == -INFINITY && sums.highest[1] == -INFINITY;
    float fade[2];
    uint32_t p_high[2][2], p_low[2][2];  // of the lane's two pairs of keys, of each row
#pragma unroll
    for (uint32_t row = 0; row < 2; ++row) {
        float score[2][2];  // of each pair
        float highest = sums.highest[row];
#pragma unroll
        for (uint32_t pair = 0; pair < 2; ++pair) {
#pragma unroll
            for (uint32_t key = 0; key < 2; ++key) {
                const uint32_t at = position + 4 * q + 2 * pair + key;
                score[pair][key] = at >= seen[row].first && at < seen[row].end
                                       ? scores.of[key].at[2 * row + pair] * scale
                                       : -INFINITY;
                highest = fmaxf(highest, score[pair][key]);
            }
        }
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
        // Nothing seen so far: nothing to make smaller, and no key counts.
        const float base = highest == -INFINITY ? 0.0f : highest;
        fade[row] = exp2_approx(sums.highest[row] - base);
        float total = 0;
#pragma unroll
        for (uint32_t pair = 0; pair < 2; ++pair) {
            float p[2], rest[2];
#pragma unroll
            for (uint32_t key = 0; key < 2; ++key) {
                p[key] = exp2_approx(score[pair][key] - base);
                total += p[key];
                rest[key] = p[key] - round_to_bf16(p[key]);
            }
            p_high[pair][row] = pack_bf16(p[0], p[1]);
            p_low[pair][row] = pack_bf16(rest[0], rest[1]);
        }
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        sums.total[row] = sums.total[row] * fade[row] + total;
        sums.highest[row] = highest;
    }
    const bool empty = __ballot_sync(~0u, first) == ~0u;
    const auto* const from = reinterpret_cast<const uint32_t*>(values) + 2 * q * v_head_dim + 4 * g;
    float* const to = part + 2 * kQueries + g * part_stride(dims) + 8 * q;
#pragma unroll 1
    for (uint32_t dim = 0; dim < dims; dim += kValueDims) {
        const bool exists = dim + 4 * g < dims;
        const uint4 zeros{};
        const uint4 low = exists ? *reinterpret_cast<const uint4*>(from + dim) : zeros;
        const uint4 high =
            exists ? *reinterpret_cast<const uint4*>(from + v_head_dim + dim) : zeros;
        Sums out[4];
        const auto column = [&](const uint4& of, uint32_t n) {
            return n == 0 ? of.x : n == 1 ? of.y : n == 2 ? of.z : of.w;
        };
        // By row and half of the lane's eight dims.
        float4* const place[2] = {reinterpret_cast<float4*>(to + dim),
                                  reinterpret_cast<float4*>(to + 8 * part_stride(dims) + dim)};
        if (!empty) {
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) {
                const float4 before = place[i / 2][i % 2];
                const float less = fade[i / 2];
                out[0].at[i] = before.x * less;
                out[1].at[i] = before.y * less;
                out[2].at[i] = before.z * less;
                out[3].at[i] = before.w * less;
            }
        }
#pragma unroll
        for (uint32_t n = 0; n < 4; ++n) {
            mma(out[n], p_high[0][0], p_high[0][1], p_high[1][0], p_high[1][1], column(low, n),
                column(high, n));
            mma(out[n], p_low[0][0], p_low[0][1], p_low[1][0], p_low[1][1], column(low, n),
                column(high, n));
        }
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i)
            place[i / 2][i % 2] = {out[0].at[i], out[1].at[i], out[2].at[i], out[3].at[i]};
    }
}

// What a part's queries saw: when all tiles are in.
__device__ inline void store_sums(const AttentionSums& sums, float* part) {
    const uint32_t lane = lane_now();
    if (lane % 4 != 0) return;
#pragma unroll
    for (uint32_t row = 0; row < 2; ++row) {
        part[lane / 4 + 8 * row] = sums.highest[row];
        part[kQueries + lane / 4 + 8 * row] = sums.total[row];
    }
}

// Eight values of query `query`, from dim `dim`, of `count` parts in their order, with the numbers
// that the merged part has of the query. The parts' numbers are read at `numbers`, `number_stride`
// apart. A part that saw nothing has no values.
struct Merged {
    float highest, total;
    float4 value[2];
};
__device__ inline Merged merge_parts(const float* numbers, uint32_t number_stride,
                                     const float* parts, uint32_t count, uint32_t query,
                                     uint32_t dim, uint32_t dims) {
    Merged m{-INFINITY, 0, {}};
#pragma unroll 5
    for (uint32_t i = 0; i < count; ++i)
        m.highest = fmaxf(m.highest, numbers[i * number_stride + query]);
    if (m.highest == -INFINITY) return m;
    const float* const values = parts + 2 * kQueries + query * part_stride(dims) + dim;
#pragma unroll 5
    for (uint32_t i = 0; i < count; ++i) {
        const float share = exp2_approx(numbers[i * number_stride + query] - m.highest);
        if (share == 0) continue;
        m.total += numbers[i * number_stride + kQueries + query] * share;
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            const float4 v = reinterpret_cast<const float4*>(values + i * part_floats(dims))[half];
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
    return __fdividef(share, m.total * share + exp2_approx(sink * kLog2e - top));
}

}  // namespace tessera::gpu
