// Sixteen lanes, one for each row of a unit: the vocabulary in which every CPU kernel is written
// once. The three files behind it say what a lane operation is on AVX-512 (with or without VNNI),
// on AVX2, and in plain loops; the build compiles each kernel against each.
//
//   Floats     16 f32
//   Ints       16 i32
//   Words      16 u32 as loaded: one group of a packed unit
//   Pairs      16 x 2 weights, neighbouring columns, as floats
//   Bytes      16 x 4 weights as unsigned bytes: 2 * e2m1 + 12
//
// Ruled out: the bf16 dot product of AVX-512 (vdpbf16ps). Where it was measured (Emerald Rapids) it
// does 44e9 multiply-adds a second against 87e9 of float multiply-adds with a broadcast operand and
// 367e9 of byte dot products. 16-bit dot products of 16-bit weights: as fast for eight rows as two
// byte digits, slower for one, whose time is unpacking.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tiles/packed.h"

#if defined(__AVX512F__)
#include "tiles/lanes_avx512.h"
#elif defined(__AVX2__)
#include "tiles/lanes_avx2.h"
#else
#include "tiles/lanes_portable.h"
#endif

namespace tessera::TESSERA_ISA {

// e^x for x <= 0, relative error below 3e-7: 2^n times a polynomial, in operations that compilers
// turn into vectors. Below -87 it is 0.
inline float exp_negative(float x) {
    constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float clamped = x < -87.0f ? -87.0f : x;
    const float n = (clamped * kLog2e + kRound) - kRound;
    const float r = (clamped - n * kLn2High) - n * kLn2Low;
    const float poly =
        1.0f +
        r * (1.0f + r * (0.5f + r * (0.166666672f +
                                     r * (0.0416664854f + r * (0.00833337f + r * 0.00139318f)))));
    const int32_t exponent = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &exponent, 4);
    return x < -87.0f ? 0.0f : poly * power;
}

// The same in lanes: compilers made scalars of the other one in softmax, eight times slower.
inline Floats exp_negative(const Floats& x) {
    const Floats clamped = larger(x, splat(-87.0f));
    const Floats rounding = splat(12582912.0f);  // 1.5 * 2^23, as above
    const Floats n = add(mul_add(clamped, splat(1.44269504f), rounding), splat(-12582912.0f));
    const Floats r = mul_add(n, splat(2.12194440e-4f), mul_add(n, splat(-0.693359375f), clamped));
    Floats poly = mul_add(r, splat(0.00139318f), splat(0.00833337f));
    for (const float coefficient : {0.0416664854f, 0.166666672f, 0.5f, 1.0f, 1.0f})
        poly = mul_add(poly, r, splat(coefficient));
    return zero_below(mul(poly, power_of_two(n)), x, -87.0f);
}

}  // namespace tessera::TESSERA_ISA
