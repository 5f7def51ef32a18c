// Any bytes as rows of bf16: the fast rounding and the plain one say the same, and what comes out
// is no NaN and within a quarter of the largest element.
#include "weights/quantize.h"

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "base/check.h"

using namespace tessera;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    constexpr size_t kBlockBytes = 2 * kMxBlock;
    for (size_t at = 0; at + kBlockBytes <= size; at += kBlockBytes) {
        const auto block = std::as_bytes(std::span(data + at, kBlockBytes));
        std::array<float, kMxBlock> values;
        float largest = 0;
        for (size_t i = 0; i < kMxBlock; ++i) {
            bf16 bits;
            std::memcpy(&bits, block.data() + 2 * i, 2);
            values[i] = to_float(bits);
            largest = std::fmax(largest, std::abs(values[i]));
        }
        std::array<std::byte, kMxBlock / 2> codes, plain_codes;
        std::array<std::byte, 1> scale, plain_scale;
        const bool finite = quantize_nearest(block, codes, scale);
        CHECK(finite == quantize_row(values, BlockRounding::nearest, {}, plain_codes, plain_scale));
        std::array<std::byte, kMxBlock / 2> best_codes;
        std::array<std::byte, 1> best_scale;
        CHECK(finite == quantize_row(values, BlockRounding::mse, {}, best_codes, best_scale));
        if (!finite) continue;
        CHECK(codes == plain_codes && scale == plain_scale);
        CHECK(scale[0] != std::byte{kE8m0NaN} && best_scale[0] != std::byte{kE8m0NaN});
        const float step = e8m0_to_float(std::to_integer<uint8_t>(scale[0]));
        for (size_t i = 0; i < kMxBlock; ++i) {
            const auto pair = std::to_integer<unsigned>(codes[i / 2]);
            const float back = kE2m1[i % 2 == 0 ? pair & 15 : pair >> 4] * step;
            CHECK(std::abs(back - values[i]) <= std::fmax(largest / 4, 0x1p-129f));
        }
    }
    return 0;
}
