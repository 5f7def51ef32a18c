#include "weights/quantize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"

namespace tessera {
namespace {

// What divides code k from k + 1, and whether it belongs to k + 1 itself: the even code has it.
struct Threshold {
    float value;
    bool rounds_up;
};
constexpr Threshold kThresholds[] = {{0.25f, false}, {0.75f, true}, {1.25f, false}, {1.75f, true},
                                     {2.5f, false},  {3.5f, true},  {5.0f, false}};

// The byte of nearest's scale for a largest magnitude with this exponent field (that of bf16 and of
// float alike). Numbers below 2^-125 would need scales that e8m0 does not have.
uint8_t scale_byte(uint32_t exponent_field) {
    return static_cast<uint8_t>(
        exponent_field > kE2m1ExponentMax ? exponent_field - kE2m1ExponentMax : 0);
}

// Two codes a byte, the even element low.
void pack_codes(const std::array<uint16_t, kMxBlock>& codes, std::byte* out) {
    for (uint32_t i = 0; i < kMxBlock / 2; ++i)
        out[i] = static_cast<std::byte>(codes[2 * i] | codes[2 * i + 1] << 4);
}

// The code of a magnitude that was divided by its scale.
uint16_t code_of(float scaled) {
    uint16_t code = 0;
    for (const Threshold& t : kThresholds)
        code = static_cast<uint16_t>(code + (t.rounds_up ? scaled >= t.value : scaled > t.value));
    return code;
}

using Magnitudes = std::array<float, kMxBlock>;

// 2^(127 - byte): times it is exact wherever the result is not far below the first threshold.
float inverse_scale(uint8_t byte) {
    return std::ldexp(1.0f, 127 - byte);
}

// Sum of squared errors with this scale, in units of `unit`'s; double, so that what two scales have
// in common adds the same.
double squared_error(const Magnitudes& magnitudes, uint8_t byte, uint8_t unit,
                     std::span<const float> weights) {
    const float down = inverse_scale(byte), to_unit = inverse_scale(unit);
    const double step = std::ldexp(1.0, byte - unit);
    double sum = 0;
    for (uint32_t i = 0; i < kMxBlock; ++i) {
        const double error =
            double{magnitudes[i]} * to_unit - step * double{kE2m1[code_of(magnitudes[i] * down)]};
        sum += error * error * (weights.empty() ? 1.0 : double{weights[i]});
    }
    return sum;
}

uint8_t best_scale(const Magnitudes& magnitudes, uint8_t nearest, std::span<const float> weights) {
    uint8_t best = nearest;
    double least = squared_error(magnitudes, nearest, nearest, weights);
    for (const int offset : {1, -1, -2}) {
        const int byte = nearest + offset;
        if (byte < 0 || byte >= kE8m0NaN) continue;
        const double error =
            squared_error(magnitudes, static_cast<uint8_t>(byte), nearest, weights);
        if (error >= least) continue;
        least = error;
        best = static_cast<uint8_t>(byte);
    }
    return best;
}

// One block; false if it holds what is no number.
bool quantize_block(std::span<const float, kMxBlock> block, BlockRounding rounding,
                    std::span<const float> weights, std::byte* codes, std::byte* scale) {
    Magnitudes magnitudes;
    float largest = 0;
    bool finite = true;
    for (uint32_t i = 0; i < kMxBlock; ++i) {
        magnitudes[i] = std::abs(block[i]);
        finite &= magnitudes[i] <= std::numeric_limits<float>::max();
        largest = std::max(largest, magnitudes[i]);
    }
    if (!finite) return false;
    uint8_t byte = scale_byte(std::bit_cast<uint32_t>(largest) >> 23);
    if (rounding == BlockRounding::mse && largest > 0) byte = best_scale(magnitudes, byte, weights);
    const float down = inverse_scale(byte);
    std::array<uint16_t, kMxBlock> found;
    for (uint32_t i = 0; i < kMxBlock; ++i) {
        const auto sign = static_cast<uint16_t>(std::signbit(block[i]) ? 8 : 0);
        found[i] = static_cast<uint16_t>(code_of(magnitudes[i] * down) | sign);
    }
    pack_codes(found, codes);
    *scale = static_cast<std::byte>(byte);
    return true;
}

}  // namespace

bool quantize_nearest(std::span<const std::byte> row, std::span<std::byte> codes,
                      std::span<std::byte> scales, const Kernels& kernels) {
    const size_t columns = row.size() / sizeof(bf16);
    CHECK(row.size() % (kMxBlock * sizeof(bf16)) == 0);
    CHECK(codes.size() == columns / 2 && scales.size() == columns / kMxBlock);
    const auto blocks = static_cast<uint32_t>(scales.size());
    for (uint32_t block = 0; block < blocks; ++block) {
        block +=
            kernels.to_mxfp4(row.data() + size_t{block} * kMxBlock * sizeof(bf16), blocks - block,
                             codes.data() + size_t{block} * kMxBlock / 2, scales.data() + block);
        if (block == blocks) break;
        // One that the kernel leaves: too small for its integers, or no numbers.
        const size_t at = size_t{block} * kMxBlock;
        std::array<bf16, kMxBlock> bits;
        std::memcpy(bits.data(), row.data() + at * sizeof(bf16), sizeof(bits));
        std::array<float, kMxBlock> values;
        std::ranges::transform(bits, values.begin(), to_float);
        if (!quantize_block(values, BlockRounding::nearest, {}, codes.data() + at / 2,
                            &scales[block]))
            return false;
    }
    return true;
}

bool quantize_row(std::span<const float> row, BlockRounding rounding,
                  std::span<const float> column_weights, std::span<std::byte> codes,
                  std::span<std::byte> scales) {
    CHECK(row.size() % kMxBlock == 0);
    CHECK(codes.size() == row.size() / 2 && scales.size() == row.size() / kMxBlock);
    CHECK(column_weights.empty() || column_weights.size() == row.size());
    for (size_t block = 0; block < scales.size(); ++block) {
        const size_t at = block * kMxBlock;
        const auto weights =
            column_weights.empty() ? column_weights : column_weights.subspan(at, kMxBlock);
        if (!quantize_block(row.subspan(at).first<kMxBlock>(), rounding, weights,
                            codes.data() + at / 2, &scales[block]))
            return false;
    }
    return true;
}

}  // namespace tessera
