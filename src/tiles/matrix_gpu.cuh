// One panel of a matrix against eight tokens, by one warp: the matrix kernels of the GPU. Panels
// are the CPU's (tiles/packed.h), but for the bits within a word of mxfp4 and fp8
// (tiles/e2m1_gpu.h, e4m3_gpu.h), fp8's scales, and where groups and their halves lie (group_place,
// swaps_halves). Weights are the M operand of mma.m16n8k16, a unit's 16 rows by 16 columns, and the
// eight tokens are N. Sums are float, one after another in the order of blocks of columns; a
// token's sum does not depend on the others'.
//
// The tile order was made for lanes of a vector, and fits a warp, too: of the 64-byte group (4
// bytes of each of 16 rows) a lane takes the 8 bytes of two neighbouring rows, a warp four groups
// in one go. The mma's rows r and r + 8 are then the unit's rows 2r and 2r + 1, and which columns
// meet in which step of k is the lanes' own matter as long as weights and activations agree: of
// every block of 32 columns a lane has eight that are neighbours, activations by one load.
//
//   format  loads of weights a block   become bf16 by
//   mxfp4   1, of 8 columns of 2 rows  bits moved to their places: exact
//   fp8     2, of 4                    the same, then times the scale, rounded: as published
//   bf16    4, of 2                    nothing
//   f32     8, of 1                    three bf16 terms that add up to it exactly: three mma
#pragma once

#include <cstddef>
#include <cstdint>

#include "tiles/e2m1_gpu.h"
#include "tiles/e4m3_gpu.h"
#include "tiles/packed.h"
#include "tiles/rows_gpu.cuh"

namespace tessera::gpu {

// Tokens of a step: the N of an mma.
inline constexpr uint32_t kTokens = 8;

// Elements from one token's activations to the next's in shared memory: 32 modulo 64 keeps the
// reads of 16 bytes by eight tokens apart.
constexpr __host__ __device__ uint32_t activation_stride(uint32_t columns) {
    return (columns + 127) / 128 * 128 + 32;
}

// Activations are multiplied by 2^64 on their way into shared memory, which is exact, since e2m1's
// bits in the places of a bf16 are 2^-126 of their value: weights of mxfp4 then need no
// multiplication of their own, their block's scale comes to the sums of 32 columns, and nothing in
// between is too small for a float.
inline constexpr float kActivationScale = 0x1p64f;

// What sums are multiplied by when all columns are in.
constexpr __host__ __device__ float unscale(Format format) {
    constexpr float kScaled = 1 / kActivationScale;
    return format == Format::mxfp4 ? 0x1p126f * kScaled
           : format == Format::fp8 ? 0x1p120f / kE4m3ScaleFactor * kScaled
                                   : kScaled;
}

// Four sums of a lane: row 2 * (lane / 4) of tokens 2 * (lane % 4) and the next, then the next row.
struct Sums {
    float at[4] = {0, 0, 0, 0};
};

// The same in two halves, of alternate steps: an mma need not wait for the one before.
struct TwoSums {
    Sums even, odd;

    __device__ float operator[](uint32_t i) const { return even.at[i] + odd.at[i]; }
    __device__ void operator+=(const TwoSums& more) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            even.at[i] += more.even.at[i];
            odd.at[i] += more.odd.at[i];
        }
    }
};

__device__ inline void mma(Sums& c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                           uint32_t b1) {
    mma_m16n8k16(c.at, a0, a1, a2, a3, b0, b1);
}

// A row's scale of fp8, each part in both halves of a word.
struct E4m3Scale {
    uint32_t high, low;

    static __device__ E4m3Scale of(uint32_t both) {
        return {__byte_perm(both, both, 0x1010), __byte_perm(both, both, 0x3232)};
    }

    // Four columns of fp8 times their scale, rounded to bf16.
    __device__ uint2 columns(uint32_t word) const {
        const E4m3Pairs codes = e4m3_pairs(word);
        return {times(codes.at[0]), times(codes.at[1])};
    }

    __device__ uint32_t times(uint32_t pair) const {
        return multiply_add_bf16(pair, high, multiply_bf16(pair, low));
    }
};

// The next bf16 term of two floats, cut off rather than rounded, and what is left of them.
__device__ inline uint32_t take_term(float& low, float& high) {
    const uint32_t a = __float_as_uint(low) & 0xffff0000u, b = __float_as_uint(high) & 0xffff0000u;
    low -= __uint_as_float(a);
    high -= __uint_as_float(b);
    return __byte_perm(a, b, 0x7632);
}

template <typename T>
__device__ inline T load_shared(const void* at) {
    return *static_cast<const T*>(at);
}

// Groups of a block of 32 columns that one lane needs.
inline constexpr uint32_t kBlockColumns = 32;
constexpr __host__ __device__ uint32_t lane_groups(Format format) {
    return kBlockColumns / 4 / group_columns(format);
}

// Where a group lies in its panel: of a block those that four lanes load together are neighbours,
// lane q's n-th group the q-th of the n-th four.
constexpr __host__ __device__ uint32_t group_place(Format format, uint32_t group) {
    const uint32_t own = lane_groups(format), in_block = group % (4 * own);
    return group - in_block + in_block % own * 4 + in_block / own;
}

// A group has eight pairs of rows, 8 bytes each. In every second two places its halves change
// places: loads of 8 bytes are made for half a warp at a time, whose lanes want the same half of
// four groups, which would lie in the same banks, two by two.
constexpr __host__ __device__ bool swaps_halves(uint32_t place) {
    return (place >> 1 & 1) != 0;
}
// Of a lane's pair, in every group that it loads.
constexpr __host__ __device__ uint32_t pair_place(uint32_t pair, uint32_t lane_group) {
    return swaps_halves(lane_group) ? pair ^ 4 : pair;
}

// Pieces of 128 columns, or of f32 64: what a page holds whole ones of.
constexpr __host__ __device__ uint32_t piece_columns(Format format) {
    return format == Format::f32 ? kPanelColumns / 2 : kPanelColumns;
}
constexpr __host__ __device__ uint32_t piece_bytes(Format format) {
    return panel_bytes(format) / (kPanelColumns / piece_columns(format));
}

// 32 columns of mxfp4: the lane's words of two rows, where their scales are, its columns of the
// token. A byte each, since what takes them apart is work for the unit that has most of it.
__device__ inline void multiply_mxfp4_block(const uint2& words, const std::byte* scales,
                                            const uint4& x, Sums& sum) {
    Sums of_block;
    const E2m1Pairs a = e2m1_pairs(words.x), b = e2m1_pairs(words.y);
    mma(of_block, a.at[0], b.at[0], a.at[1], b.at[1], x.x, x.y);
    mma(of_block, a.at[2], b.at[2], a.at[3], b.at[3], x.z, x.w);
    const auto scale = [&](uint32_t row) {
        return __uint_as_float(uint32_t{load_shared<uint8_t>(scales + row)} << 23);
    };
    const float s0 = scale(0), s1 = scale(1);
    sum.at[0] += s0 * of_block.at[0];
    sum.at[1] += s0 * of_block.at[1];
    sum.at[2] += s1 * of_block.at[2];
    sum.at[3] += s1 * of_block.at[3];
}

// Two pieces at once, so that the lane has twice as much to do while it waits for either: the same
// columns of two units, whose activations are read once, or neighbouring columns of one.
template <bool same_columns>
__device__ inline void multiply_mxfp4_two(const std::byte* first, const std::byte* second,
                                          const uint16_t* token, TwoSums (&sums)[2]) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const uint32_t pair = panel_scale_bytes(Format::mxfp4) + pair_place(g, q) * 8;
#pragma unroll
    for (uint32_t block = 0; block < 4; ++block) {
        uint4 x{};
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
            const std::byte* const piece = i == 0 ? first : second;
            if (i == 0 || !same_columns)
                x = load_shared<uint4>(token + i * kPanelColumns + (4 * block + q) * 8);
            const uint2 w = load_shared<uint2>(piece + pair + (4 * block + q) * kGroupBytes);
            multiply_mxfp4_block(w, piece + block * kUnitRows + 2 * g, x,
                                 block % 2 == 0 ? sums[i].even : sums[i].odd);
        }
    }
}

// Adds a piece's products with its columns of the activations to the lane's sums. `token`: where
// those of token lane / 4 begin.
template <Format format>
__device__ inline void multiply_piece(const std::byte* piece, const uint16_t* token,
                                      TwoSums& sums) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    constexpr uint32_t kOwn = lane_groups(format), kBlocks = piece_columns(format) / kBlockColumns;
    const std::byte* const groups =
        piece + panel_scale_bytes(format) + q * kGroupBytes + pair_place(g, q) * 8;
    uint2 scales{};
    if constexpr (format == Format::fp8) scales = load_shared<uint2>(piece + g * 8);
    const E4m3Scale first = E4m3Scale::of(scales.x), second = E4m3Scale::of(scales.y);
#pragma unroll
    for (uint32_t block = 0; block < kBlocks; ++block) {
        const uint4 x = load_shared<uint4>(token + block * kBlockColumns + q * 8);
        uint2 w[kOwn];
#pragma unroll
        for (uint32_t i = 0; i < kOwn; ++i)
            w[i] = load_shared<uint2>(groups + (block * kOwn + i) * 4 * kGroupBytes);
        if constexpr (format == Format::mxfp4) {
            multiply_mxfp4_block(w[0], piece + block * kUnitRows + 2 * g, x,
                                 block % 2 == 0 ? sums.even : sums.odd);
        } else if constexpr (format == Format::fp8) {
            const uint2 a = first.columns(w[0].x), b = second.columns(w[0].y);
            mma(sums.even, a.x, b.x, a.y, b.y, x.x, x.y);
            const uint2 c = first.columns(w[1].x), d = second.columns(w[1].y);
            mma(sums.odd, c.x, d.x, c.y, d.y, x.z, x.w);
        } else if constexpr (format == Format::bf16) {
            mma(sums.even, w[0].x, w[0].y, w[1].x, w[1].y, x.x, x.y);
            mma(sums.odd, w[2].x, w[2].y, w[3].x, w[3].y, x.z, x.w);
        } else {
#pragma unroll
            for (uint32_t half = 0; half < 2; ++half) {
                float at[4][2];  // column, row
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    at[i][0] = __uint_as_float(w[4 * half + i].x);
                    at[i][1] = __uint_as_float(w[4 * half + i].y);
                }
#pragma unroll
                for (uint32_t term = 0; term < 3; ++term) {
                    const uint32_t a0 = take_term(at[0][0], at[1][0]);
                    const uint32_t a1 = take_term(at[0][1], at[1][1]);
                    const uint32_t a2 = take_term(at[2][0], at[3][0]);
                    const uint32_t a3 = take_term(at[2][1], at[3][1]);
                    mma(half == 0 ? sums.even : sums.odd, a0, a1, a2, a3, half == 0 ? x.x : x.z,
                        half == 0 ? x.y : x.w);
                }
            }
        }
    }
}

// `count` pieces, one behind the other.
template <Format format>
__device__ inline void multiply_pieces(const std::byte* pieces, const uint16_t* token,
                                       uint32_t count, TwoSums& sums) {
#pragma unroll 1
    for (uint32_t i = 0; i < count; ++i) {
        multiply_piece<format>(pieces, token, sums);
        pieces += piece_bytes(format);
        token += piece_columns(format);
    }
}
__device__ inline void multiply_pieces(Format format, const std::byte* pieces,
                                       const uint16_t* token, uint32_t count, TwoSums& sums) {
    switch (format) {
        case Format::mxfp4:
            return multiply_pieces<Format::mxfp4>(pieces, token, count, sums);
        case Format::fp8:
            return multiply_pieces<Format::fp8>(pieces, token, count, sums);
        case Format::bf16:
            return multiply_pieces<Format::bf16>(pieces, token, count, sums);
        case Format::f32:
            return multiply_pieces<Format::f32>(pieces, token, count, sums);
    }
}

// Pieces of one unit; or, with `pairs`, of two that lie `apart` bytes apart.
__device__ inline void multiply_item(Format format, const std::byte* pieces, bool pairs,
                                     uint32_t apart, const uint16_t* token, uint32_t count,
                                     TwoSums (&sums)[2]) {
#pragma unroll 1
    for (uint32_t unit = 0;; ++unit) {
        multiply_pieces(format, pieces + unit * apart, token, count, sums[0]);
        if (!pairs) return;
        const TwoSums first = sums[0];
        sums[0] = sums[1];
        sums[1] = first;
        if (unit == 1) return;
    }
}

}  // namespace tessera::gpu
