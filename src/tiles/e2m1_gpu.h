// Eight columns of mxfp4 in a word: the order of bits that the GPU has them in, which is not the
// CPU's (tiles/packed.h), and how both become bf16. No CUDA, so that tests on any machine prove
// what the kernel runs.
//
// A pair of columns is two halves of bf16, times 2^-126: e2m1's sign at the top, its other three
// bits across the border of exponent and mantissa, where e2m1's subnormal is bf16's. That is bits
// 6, 7, 8 and 15 of each half, so a pair costs a shift and a mask wherever its eight bits keep
// those distances. Three pairs do, turned by 0, 6 and -6; a fourth has no such place left (no four
// turns of {6, 7, 8, 15} fill 16 bits). Its bits are what two other shifts differ in: each is an
// XOR, so the places left hold whatever makes it come out. Shifts to the left can be
// multiplications, which leave the GPU's logic unit alone.
//
//   bits of a half   0 1 2 9    3 4 10 11               5 12 13 14    6 7 8 15
//   belong to        pair 2     pair 3, beside others   pair 1        pair 0
//
// Eight operations a word: four masks and four shifts. In the CPU's order it is fifteen; bits that
// are only moved take nine. Seven would be enough with a multiplication by 2^12 + 2^4 in the place
// of two shifts, but for its carries: a few of the 2^32 words then have no word of their own.
#pragma once

#include <cstdint>

namespace tessera::gpu {

// Pair n: columns 2n and, in the upper half, 2n + 1.
struct E2m1Pairs {
    uint32_t at[4];
};

inline constexpr uint32_t kE2m1PairBits = 0x81c081c0u;

// Of a word in the GPU's order: what the kernel does.
constexpr E2m1Pairs e2m1_pairs(uint32_t word) {
    return {{word & kE2m1PairBits, (word >> 6 | word << 26) & kE2m1PairBits,
             (word << 6) & kE2m1PairBits, (word >> 4 ^ word << 4) & kE2m1PairBits}};
}

// Of a word in the CPU's order, where nibble n is column 2n and nibble n + 4 column 2n + 1.
constexpr E2m1Pairs e2m1_pairs_of_packed(uint32_t word) {
    E2m1Pairs pairs{};
    for (uint32_t n = 0; n < 4; ++n) {
        const uint32_t codes = word >> 4 * n & 0x000f000fu;
        pairs.at[n] = (codes & 0x00080008u) << 12 | (codes & 0x00070007u) << 6;
    }
    return pairs;
}

// Places of a word that make `word >> 4 ^ word << 4` come out as the top bits of four bytes in
// `wanted` do: bit 31 has 27, bit 23 that and 19, bit 15 19 and 11, bit 7 11 and 3. So from the top
// on, a place is the XOR of all bits down to it.
constexpr uint32_t chained_places(uint32_t wanted) {
    uint32_t chain = wanted & 0x80808080u;
    chain ^= chain >> 8;
    chain ^= chain >> 16;
    return chain >> 4;
}

// A word in the CPU's order, in the GPU's. Zeros stay zeros.
constexpr uint32_t e2m1_for_gpu(uint32_t packed) {
    const E2m1Pairs pairs = e2m1_pairs_of_packed(packed);
    const uint32_t known = pairs.at[0] | pairs.at[1] << 6 | pairs.at[1] >> 26 | pairs.at[2] >> 6;
    // What the places left have to add to the fourth pair. Its bits 6 and 22 have one such place
    // each, 4 higher; 8 and 24 one 4 lower; 31, 23, 15 and 7 are chained.
    const uint32_t rest = pairs.at[3] ^ e2m1_pairs(known).at[3];
    return known | (rest & 0x00400040u) << 4 | (rest & 0x01000100u) >> 4 | chained_places(rest);
}

}  // namespace tessera::gpu
