// Kernels over one row of activations, in loops that compilers turn into vectors.
#include "tiles/table_cpu.h"

namespace tessera::TESSERA_ISA {
namespace {

float square_root(float x) {
    return __builtin_sqrtf(x);
}
// To nearest, ties to even, for magnitudes far below 2^22.
float rounded(float x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
    return (x + kRound) - kRound;
}

// Of a block's magnitudes.
float largest_of(const float* x) {
    float largest = 0;
    for (uint32_t i = 0; i < kMxBlock; ++i) {
        const float magnitude = __builtin_fabsf(x[i]);
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

}  // namespace

uint32_t read(const std::byte* from, size_t bytes) {
    // Four streams of a page each, as a matrix kernel's units are.
    Ints sums[4] = {splat_int(0), splat_int(0), splat_int(0), splat_int(0)};
    for (size_t at = 0; at + 4 * kGroupBytes <= bytes; at += 4 * kGroupBytes) {
        for (uint32_t i = 0; i < 4; ++i)
            sums[i] = add(sums[i], as_ints(load_words(from + at + i * kGroupBytes)));
    }
    int32_t lanes[kUnitRows];
    store(lanes, add(add(sums[0], sums[1]), add(sums[2], sums[3])));
    uint32_t sum = 0;
    for (const int32_t lane : lanes) sum += static_cast<uint32_t>(lane);
    return sum;
}

void norm(const float* x, const float* gain, uint32_t width, float epsilon, float* out) {
    float lanes[kUnitRows] = {};
    uint32_t i = 0;
    for (; i + kUnitRows <= width; i += kUnitRows) {
        for (uint32_t lane = 0; lane < kUnitRows; ++lane) lanes[lane] += x[i + lane] * x[i + lane];
    }
    float sum = 0;
    for (; i < width; ++i) sum += x[i] * x[i];
    for (const float lane : lanes) sum += lane;
    const float inverse = 1.0f / square_root(sum / static_cast<float>(width) + epsilon);
    for (i = 0; i < width; ++i) out[i] = round_bf16(round_bf16(x[i] * inverse) * gain[i]);
}

void quantize_int16(const float* x, uint32_t blocks, Int16Block* out) {
    for (uint32_t b = 0; b < blocks; ++b, x += kMxBlock, ++out) {
        const float largest = largest_of(x);
        const float inverse = largest > 0 ? kInt16Largest / largest : 0.0f;
        int32_t sum = 0;
        for (uint32_t i = 0; i < kMxBlock; ++i) {
            const auto code = static_cast<int32_t>(rounded(x[i] * inverse));
            const uint32_t at = i / 8 * 8 + kBlockOrder[i % 8];
            out->high[at] = static_cast<int8_t>((code + 128) >> 8);
            out->low[at] = static_cast<int8_t>(code);  // modulo 256, from -128 to 127
            sum += code;
        }
        out->scale = largest / (2.0f * kInt16Largest);
        out->balance = -12 * sum;
    }
}

void quantize_int8(const float* x, uint32_t blocks, Int8Block* out) {
    for (uint32_t b = 0; b < blocks; ++b, x += kMxBlock, ++out) {
        const float largest = largest_of(x);
        const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        int32_t sum = 0;
        for (uint32_t i = 0; i < kMxBlock; ++i) {
            const auto code = static_cast<int32_t>(rounded(x[i] * inverse));
            out->codes[i / 8 * 8 + kBlockOrder[i % 8]] = static_cast<int8_t>(code);
            sum += code;
        }
        out->scale = largest / (2 * 127.0f);
        out->balance = -12 * sum;
    }
}

void gate(const float* gate, const float* up, uint32_t count, float* out) {
    for (uint32_t i = 0; i < count; ++i) {
        const float g = round_bf16(gate[i]);
        // e^-|g| never overflows; the two halves of the sigmoid share it.
        const float e = exp_negative(-__builtin_fabsf(g));
        const float sigmoid = (g < 0 ? e : 1.0f) / (1.0f + e);
        out[i] = round_bf16(g * sigmoid * round_bf16(up[i]));
    }
}

void add_weighted(const float* x, float weight, uint32_t count, float* sum) {
    for (uint32_t i = 0; i < count; ++i) sum[i] += weight * x[i];
}

void add_residual(const float* update, uint32_t count, float* x) {
    for (uint32_t i = 0; i < count; ++i) x[i] = round_bf16(x[i] + round_bf16(update[i]));
}

}  // namespace tessera::TESSERA_ISA
