// The GPU's order of mxfp4's bits: that the kernel's own expression finds every code in every
// place.
#include "tiles/e2m1_gpu.h"

#include <random>

#include <gtest/gtest.h>

#include "base/numbers.h"

namespace tessera::gpu {
namespace {

constexpr uint32_t kColumns = 8;

// Where tiles/packed.h says that a column's code lies.
uint32_t code_of(uint32_t packed, uint32_t column) {
    const uint32_t nibble = column % 2 == 0 ? column / 2 : 4 + column / 2;
    return packed >> 4 * nibble & 15u;
}

// All columns of a word against the number format's own table, bit for bit: zeros have signs.
void expect_columns(uint32_t packed) {
    const E2m1Pairs pairs = e2m1_pairs(e2m1_for_gpu(packed));
    for (uint32_t column = 0; column < kColumns; ++column) {
        const uint32_t bits = pairs.at[column / 2] >> 16 * (column % 2) & 0xffffu;
        ASSERT_EQ(bits, to_bf16(kE2m1[code_of(packed, column)] * 0x1p-126f).bits)
            << std::hex << packed << " column " << column;
    }
}

TEST(E2m1ForGpu, EveryCodeInEveryPlace) {
    for (const uint32_t others : {0x00000000u, 0xffffffffu, 0x89abcdefu, 0x55555555u, 0xaaaaaaaau})
        for (uint32_t nibble = 0; nibble < kColumns; ++nibble)
            for (uint32_t code = 0; code < 16; ++code)
                expect_columns((others & ~(15u << 4 * nibble)) | code << 4 * nibble);
}

TEST(E2m1ForGpu, EveryCodeBesideEveryOther) {
    for (uint32_t one = 0; one < kColumns; ++one)
        for (uint32_t other = 0; other < one; ++other)
            for (uint32_t codes = 0; codes < 256; ++codes)
                expect_columns((codes & 15u) << 4 * one | codes >> 4 << 4 * other);
}

TEST(E2m1ForGpu, AnyWord) {
    std::mt19937 words(1);
    for (uint32_t i = 0; i < 1'000'000; ++i) expect_columns(static_cast<uint32_t>(words()));
}

}  // namespace
}  // namespace tessera::gpu
