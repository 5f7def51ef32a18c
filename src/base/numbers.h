// The number formats of published checkpoints, each as one exact conversion to float.
//
//   bf16  1-8-7, the upper half of a float
//   e4m3  1-4-3 "fn": bias 7, no infinities, S.1111.111 is NaN, largest 448 (OCP 8-bit FP)
//   e2m1  1-2-1: the 4-bit element of MXFP4, {0, .5, 1, 1.5, 2, 3, 4, 6} and their negatives
//   e8m0  a power of two, 2^(byte - 127); 255 is NaN (OCP Microscaling Formats 1.0)
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace tessera {

// How the elements of a stored matrix are written; scales stand beside fp8 and mxfp4.
enum class Format : uint8_t { f32, bf16, fp8, mxfp4 };

// Of one element, without its share of a scale.
constexpr uint32_t element_bits(Format format) {
    switch (format) {
        case Format::f32:
            return 32;
        case Format::bf16:
            return 16;
        case Format::fp8:
            return 8;
        case Format::mxfp4:
            return 4;
    }
    return 0;
}

// Storage only: arithmetic happens in float.
struct bf16 {
    uint16_t bits = 0;
};
static_assert(sizeof(bf16) == 2);

constexpr float to_float(bf16 value) {
    return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN (quiet), overflow becomes infinity.
constexpr bf16 to_bf16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// The float nearest to `value` that bf16 can hold.
constexpr float round_bf16(float value) {
    return to_float(to_bf16(value));
}

constexpr float e4m3_to_float(uint8_t byte) {
    const uint32_t exponent = (byte >> 3) & 15u, mantissa = byte & 7u;
    if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
    // A subnormal is mantissa / 8 * 2^-6; a normal rebiases its exponent from 7 to 127.
    const float magnitude = exponent == 0
                                ? static_cast<float>(mantissa) * 0x1p-9f
                                : std::bit_cast<float>((exponent + 120u) << 23 | mantissa << 20);
    return byte & 0x80 ? -magnitude : magnitude;
}

inline constexpr std::array<float, 16> kE2m1 = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,
                                                4.0f,  6.0f,  -0.0f, -0.5f, -1.0f, -1.5f,
                                                -2.0f, -3.0f, -4.0f, -6.0f};
inline constexpr uint32_t kE2m1ExponentMax = 2;  // 6 is 1.5 x 2^2

inline constexpr uint8_t kE8m0NaN = 255;

// 2^(byte - 127), exact for every byte but 255 (NaN); byte 0 is the subnormal 2^-127.
constexpr float e8m0_to_float(uint8_t byte) {
    if (byte == kE8m0NaN) return std::numeric_limits<float>::quiet_NaN();
    return byte == 0 ? 0x1p-127f : std::bit_cast<float>(static_cast<uint32_t>(byte) << 23);
}

inline constexpr uint32_t kMxBlock = 32;    // elements that share one e8m0 scale, along the input
inline constexpr uint32_t kFp8Block = 128;  // an e4m3 scale covers 128 rows x 128 columns

}  // namespace tessera
