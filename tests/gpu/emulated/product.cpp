#include "gpu/emulated/product.h"

#include <bit>

namespace emulated {
namespace {

// Exact: subnormal values of a float would cost the host a hundred cycles each.
double bf16_value(uint32_t bits) {
    const uint32_t low = bits & 0xffffu;
    if ((low & 0x7f80u) != 0) return std::bit_cast<float>(low << 16);
    const double value = static_cast<double>(low & 0x7fu) * 0x1p-133;
    return (low & 0x8000u) != 0 ? -value : value;
}

}  // namespace

#if defined(__x86_64__)
[[gnu::target_clones("avx2", "default")]]
#endif
void multiply(Fragments* const (&lanes)[kLanes]) {
    using Four [[gnu::vector_size(32)]] = double;
    double a[16][16];
    alignas(32) double b[16][8];
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
        const uint32_t g = lane / 4, q = lane % 4;
        const uint32_t* const o = lanes[lane]->operands;
        for (uint32_t i = 0; i < 2; ++i) {
            a[g][2 * q + i] = bf16_value(o[0] >> 16 * i);
            a[g + 8][2 * q + i] = bf16_value(o[1] >> 16 * i);
            a[g][2 * q + 8 + i] = bf16_value(o[2] >> 16 * i);
            a[g + 8][2 * q + 8 + i] = bf16_value(o[3] >> 16 * i);
            b[2 * q + i][g] = bf16_value(o[4] >> 16 * i);
            b[2 * q + 8 + i][g] = bf16_value(o[5] >> 16 * i);
        }
    }
    for (uint32_t row = 0; row < 16; ++row) {
        Four low{}, high{};
        for (uint32_t k = 0; k < 16; ++k) {
            low += a[row][k] * *reinterpret_cast<const Four*>(&b[k][0]);
            high += a[row][k] * *reinterpret_cast<const Four*>(&b[k][4]);
        }
        alignas(32) double sums[8];
        *reinterpret_cast<Four*>(&sums[0]) = low;
        *reinterpret_cast<Four*>(&sums[4]) = high;
        for (uint32_t column = 0; column < 8; ++column) {
            float& sum = lanes[row % 8 * 4 + column / 2]->sums[row / 8 * 2 + column % 2];
            sum = static_cast<float>(static_cast<double>(sum) + sums[column]);
        }
    }
}

}  // namespace emulated
