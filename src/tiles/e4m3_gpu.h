// Four columns of fp8 in a word and the scales of a row's 128: the forms that the GPU has them in,
// which are not the CPU's (tiles/packed.h), and how they become the bf16 that the model publishes,
// bf16(e4m3 * scale). No CUDA, so that tests on any machine prove what the kernel runs.
//
// A code's bits stand in a bf16 as they are, times 2^-120: the sign at the top, the other seven
// across the border of exponent and mantissa, where e4m3's subnormal is bf16's. One pair of columns
// has its bits there. The other's are what two shifts differ in, as mxfp4's fourth pair has them
// (tiles/e2m1_gpu.h): each is an XOR, and the places left hold whatever makes it come out. Four
// operations a word; through f16 and float, as CUDA converts, it was eight of slower units.
//
// The scale is two bf16, high + low, and a weight is fma(code, high, code * low), rounded to bf16
// twice on the way where the model rounds a float once. A code has only eight mantissas, so for
// every scale there is a low one with which all of them come out the same: the nearest bf16 of what
// high leaves, or one at most three steps from it (tried for all 2^23 mantissas by the test). Two
// operations for two weights; multiplying floats and packing them took six.
//
// A code that is no number (0x7f, 0xff) reads as 480 here: who arranges panels makes the scale of a
// row that has one none, too (runtime/gpu/fill.h).
#pragma once

#include <bit>
#include <cstdint>

#include "tiles/e2m1_gpu.h"

namespace tessera::gpu {

// Pair n: columns 2n and, in the upper half, 2n + 1.
struct E4m3Pairs {
    uint32_t at[2];
};

inline constexpr uint32_t kE4m3PairBits = 0x87f087f0u;

// Of a word in the GPU's order: what the kernel does.
constexpr E4m3Pairs e4m3_pairs(uint32_t word) {
    return {{word & kE4m3PairBits, (word >> 4 ^ word << 4) & kE4m3PairBits}};
}

// Of a word in the CPU's order, where bytes 0 and 2 are columns 0 and 1, bytes 1 and 3 the next.
constexpr E4m3Pairs e4m3_pairs_of_packed(uint32_t word) {
    E4m3Pairs pairs{};
    for (uint32_t n = 0; n < 2; ++n) {
        const uint32_t codes = word >> 8 * n & 0x00ff00ffu;
        pairs.at[n] = (codes & 0x00800080u) << 8 | (codes & 0x007f007fu) << 4;
    }
    return pairs;
}

// A word in the CPU's order, in the GPU's. Zeros stay zeros.
constexpr uint32_t e4m3_for_gpu(uint32_t packed) {
    const E4m3Pairs pairs = e4m3_pairs_of_packed(packed);
    const uint32_t known = pairs.at[0];
    // What the places left have to add to the second pair. Its bits 4 to 6 of a half have one such
    // place each, 4 lower; 8 to 10 one 4 higher; 31, 23, 15 and 7 are chained as mxfp4's.
    const uint32_t rest = pairs.at[1] ^ e4m3_pairs(known).at[1];
    return known | (rest & 0x00700070u) >> 4 | (rest & 0x07000700u) << 4 | chained_places(rest);
}

// Of a normal number, to nearest, ties to even: as a bf16 has it.
constexpr double nearest_bf16(double x) {
    const auto bits = std::bit_cast<uint64_t>(x);
    constexpr uint32_t kDropped = 45;  // of the 52 bits of a mantissa
    const uint64_t half_less_one = (uint64_t{1} << (kDropped - 1)) - 1;
    return std::bit_cast<double>((bits + half_less_one + (bits >> kDropped & 1)) >>
                                 kDropped << kDropped);
}

// What high and low are multiplied by beside the scale, a power of two: with it no product of a
// code and a scale from 2^-70 to 2^30 leaves the normal numbers of bf16. What is left of the codes'
// own 2^-120 is taken from the sums of a row (unscale, tiles/matrix_gpu.cuh).
inline constexpr float kE4m3ScaleFactor = 0x1p96f;

// A scale as the GPU has it: high, and low in the upper half, both times kE4m3ScaleFactor. Zero,
// and what is no number, is passed on in both.
constexpr uint32_t e4m3_scale_for_gpu(float scale) {
    const auto bf16_bits = [](double x) {
        return std::bit_cast<uint32_t>(static_cast<float>(x)) >> 16;
    };
    const double high = nearest_bf16(scale), rest = scale - high;
    const auto comes_out = [&](double low) {
        for (uint32_t code = 8; code < 16; ++code) {
            const double published = nearest_bf16(static_cast<float>(code) * scale);
            if (nearest_bf16(code * high + nearest_bf16(code * low)) != published) return false;
        }
        return true;
    };
    double low = rest == 0 ? 0 : nearest_bf16(rest);
    constexpr uint64_t kStep = uint64_t{1} << 45;
    for (uint64_t steps = 1; rest != 0 && steps <= 3 && !comes_out(low); ++steps) {
        const auto nearest = std::bit_cast<uint64_t>(nearest_bf16(rest));
        const auto more = std::bit_cast<double>(nearest + steps * kStep);
        const auto less = std::bit_cast<double>(nearest - steps * kStep);
        low = comes_out(more) ? more : comes_out(less) ? less : low;
    }
    return bf16_bits(high * kE4m3ScaleFactor) | bf16_bits(low * kE4m3ScaleFactor) << 16;
}

}  // namespace tessera::gpu
