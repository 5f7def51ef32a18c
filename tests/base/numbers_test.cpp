#include "base/numbers.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace tessera {
namespace {

TEST(Bf16, EveryValueSurvivesTheRoundTrip) {
    for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
        const bf16 value{static_cast<uint16_t>(bits)};
        if (std::isnan(to_float(value))) {
            EXPECT_TRUE(std::isnan(round_bf16(to_float(value))));
        } else {
            EXPECT_EQ(to_bf16(to_float(value)).bits, bits);
        }
    }
}

TEST(Bf16, TiesGoToEven) {
    EXPECT_EQ(to_bf16(1.0f + 0x1p-8f).bits, to_bf16(1.0f).bits);  // between 1 and 1 + 2^-7
    EXPECT_EQ(round_bf16(1.0f + 0x3p-8f), 1.0f + 0x2p-7f);        // odd neighbour below
    EXPECT_EQ(round_bf16(std::nextafter(1.0f + 0x1p-8f, 2.0f)), 1.0f + 0x1p-7f);
    EXPECT_TRUE(std::isinf(round_bf16(std::numeric_limits<float>::max())));
}

TEST(E4m3, FollowsTheFormula) {
    for (int byte = 0; byte < 256; ++byte) {
        const int exponent = (byte >> 3) & 15, mantissa = byte & 7;
        const float found = e4m3_to_float(static_cast<uint8_t>(byte));
        if (exponent == 15 && mantissa == 7) {
            EXPECT_TRUE(std::isnan(found));
            continue;
        }
        const double magnitude = exponent == 0 ? std::ldexp(mantissa / 8.0, -6)
                                               : std::ldexp(1.0 + mantissa / 8.0, exponent - 7);
        EXPECT_EQ(found, static_cast<float>(byte & 128 ? -magnitude : magnitude)) << byte;
    }
    EXPECT_EQ(e4m3_to_float(0x7e), 448.0f);
}

TEST(E8m0, IsAPowerOfTwo) {
    for (int byte = 0; byte < 255; ++byte) {
        EXPECT_EQ(e8m0_to_float(static_cast<uint8_t>(byte)), std::ldexp(1.0f, byte - 127)) << byte;
    }
    EXPECT_TRUE(std::isnan(e8m0_to_float(kE8m0NaN)));
}

}  // namespace
}  // namespace tessera
