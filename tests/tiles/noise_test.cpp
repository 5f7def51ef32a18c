// The logarithm that host and card share, against the library's.
#include "tiles/noise.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace tessera {
namespace {

void expect_close(double x) {
    const double expected = std::log(x), found = natural_log(x);
    EXPECT_NEAR(found, expected, 7e-16 * std::abs(expected)) << x;
}

TEST(Noise, TheLogarithmIsTheLibrarys) {
    for (uint64_t i = 0; i < 200'000; ++i) {
        const uint64_t hash = mix(i);
        expect_close((static_cast<double>(hash >> 12) + 0.5) * 0x1p-52);
        // Where the exponent changes, and near 1, where the result is tiny.
        expect_close(std::ldexp(1.0, static_cast<int>(hash % 1000) - 500));
        expect_close(1 - std::ldexp(static_cast<double>(hash >> 40), -60));
        expect_close(0.707106781186547524401 + (static_cast<double>(i) - 100'000) * 1e-16);
    }
    EXPECT_EQ(natural_log(1), 0);
    expect_close(0x1p-53);
    expect_close(1 - 0x1p-53);
    expect_close(std::numeric_limits<double>::min());
    expect_close(std::numeric_limits<double>::max());
}

TEST(Noise, IsNeverMoreThanItsBounds) {
    for (uint64_t i = 0; i < 100'000; ++i) {
        const uint64_t hash = i < 64 ? ~uint64_t{0} << i : mix(i) | mix(i + 1);
        EXPECT_LE(NoiseSource::noise(hash), NoiseSource::at_most(hash)) << hash;
        EXPECT_LE(NoiseSource::noise(hash), NoiseSource::kMax);
    }
}

}  // namespace
}  // namespace tessera
