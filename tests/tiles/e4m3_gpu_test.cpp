// The GPU's forms of fp8: that the kernel's own expressions find every code in every place, and
// that a code times a scale in two parts is what the model publishes, for every scale there is.
#include "tiles/e4m3_gpu.h"

#include <cmath>
#include <random>

#include <gtest/gtest.h>

#include "base/numbers.h"

namespace tessera::gpu {
namespace {

// Where tiles/packed.h says that a column's code lies.
uint32_t code_of(uint32_t packed, uint32_t column) {
    constexpr uint32_t kByte[4] = {0, 2, 1, 3};
    return packed >> 8 * kByte[column] & 255u;
}

void expect_columns(uint32_t packed) {
    const E4m3Pairs pairs = e4m3_pairs(e4m3_for_gpu(packed));
    for (uint32_t column = 0; column < 4; ++column) {
        const uint32_t code = code_of(packed, column);
        if ((code & 127u) == 127u) continue;  // no number
        const uint32_t bits = pairs.at[column / 2] >> 16 * (column % 2) & 0xffffu;
        ASSERT_EQ(bits, to_bf16(e4m3_to_float(static_cast<uint8_t>(code)) * 0x1p-120f).bits)
            << std::hex << packed << " column " << column;
    }
}

TEST(E4m3ForGpu, EveryCodeBesideEveryOther) {
    for (uint32_t one = 0; one < 4; ++one)
        for (uint32_t other = 0; other < one; ++other)
            for (uint32_t codes = 0; codes < 65536; ++codes)
                expect_columns((codes & 255u) << 8 * one | codes >> 8 << 8 * other);
}

TEST(E4m3ForGpu, AnyWord) {
    std::mt19937 words(1);
    for (uint32_t i = 0; i < 1'000'000; ++i) expect_columns(static_cast<uint32_t>(words()));
}

// As the kernel multiplies: two operations of bf16, the second rounded once.
double weight(double code, uint32_t scales) {
    const double high = to_float(bf16{static_cast<uint16_t>(scales)}),
                 low = to_float(bf16{static_cast<uint16_t>(scales >> 16)});
    return nearest_bf16(code * high + nearest_bf16(code * low)) / double{kE4m3ScaleFactor};
}

void expect_weights(float scale) {
    const uint32_t scales = e4m3_scale_for_gpu(scale);
    for (uint32_t mantissa = 8; mantissa < 16; ++mantissa)
        ASSERT_EQ(weight(mantissa, scales),
                  double{round_bf16(static_cast<float>(mantissa) * scale)})
            << std::hexfloat << scale << " mantissa " << mantissa;
}

// A code is a mantissa times a power of two, which changes no rounding, so mantissas of scales and
// of codes are all there is.
TEST(E4m3ForGpu, EveryMantissaOfAScale) {
    for (uint32_t mantissa = 0; mantissa < 1u << 23; ++mantissa)
        expect_weights(std::bit_cast<float>(std::bit_cast<uint32_t>(0x1p-9f) | mantissa));
}

TEST(E4m3ForGpu, ScalesOfAnySize) {
    std::mt19937 random(2);
    for (int exponent = -70; exponent < 30; ++exponent)
        for (uint32_t i = 0; i < 1000; ++i)
            expect_weights(
                std::ldexp(1.0f + static_cast<float>(random() % (1u << 23)) * 0x1p-23f, exponent));
    expect_weights(0);
    EXPECT_TRUE(std::isnan(weight(8, e4m3_scale_for_gpu(NAN))));
}

}  // namespace
}  // namespace tessera::gpu
