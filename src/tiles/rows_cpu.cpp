// Kernels over one row of activations, in loops that compilers turn into vectors.
#include "tiles/table_cpu.h"

namespace tessera::TESSERA_ISA {
namespace {

float square_root(float x) {
    return __builtin_sqrtf(x);
}

float largest_lane(const Floats& x) {
    float lanes[kUnitRows];
    store(lanes, x);
    float largest = lanes[0];
    for (const float lane : lanes) largest = lane > largest ? lane : largest;
    return largest;
}

Floats magnitude(const Floats& x) {
    return larger(x, mul(x, splat(-1.0f)));
}

int32_t sum_of(const Ints& x) {
    int32_t lanes[kUnitRows];
    store(lanes, x);
    int32_t sum = 0;
    for (const int32_t lane : lanes) sum += lane;
    return sum;
}

// A block's two halves as codes up to `largest_code`; returns what a code is worth.
float quantize_block(const float* x, float largest_code, Ints codes[2]) {
    const Floats halves[2] = {load(x), load(x + kUnitRows)};
    const float largest = largest_lane(larger(magnitude(halves[0]), magnitude(halves[1])));
    const Floats inverse = splat(largest > 0 ? largest_code / largest : 0.0f);
    for (uint32_t half = 0; half < 2; ++half) codes[half] = to_ints(mul(halves[half], inverse));
    return largest / largest_code;
}
static_assert(kMxBlock == 2 * kUnitRows);

}  // namespace

uint32_t read(const std::byte* from, size_t bytes) {
    // Four streams of a page each, as a matrix kernel's units are.
    Ints sums[4] = {splat_int(0), splat_int(0), splat_int(0), splat_int(0)};
    size_t at = 0;
    for (; at + 4 * kGroupBytes <= bytes; at += 4 * kGroupBytes) {
        for (uint32_t i = 0; i < 4; ++i)
            sums[i] = add(sums[i], as_ints(load_words(from + at + i * kGroupBytes)));
    }
    for (; at + kGroupBytes <= bytes; at += kGroupBytes)
        sums[0] = add(sums[0], as_ints(load_words(from + at)));
    std::byte last[kGroupBytes] = {};
    for (size_t i = 0; at + i < bytes; ++i) last[i] = from[at + i];
    sums[1] = add(sums[1], as_ints(load_words(last)));
    int32_t lanes[kUnitRows];
    store(lanes, add(add(sums[0], sums[1]), add(sums[2], sums[3])));
    uint32_t sum = 0;
    for (const int32_t lane : lanes) sum += static_cast<uint32_t>(lane);
    return sum;
}

void norm(const float* x, const float* gain, uint32_t width, float epsilon, float* out) {
    Floats squares = splat(0);
    uint32_t i = 0;
    for (; i + kUnitRows <= width; i += kUnitRows) {
        const Floats some = load(x + i);
        squares = mul_add(some, some, squares);
    }
    float lanes[kUnitRows];
    store(lanes, squares);
    float sum = 0;
    for (; i < width; ++i) sum += x[i] * x[i];
    for (const float lane : lanes) sum += lane;
    const float inverse = 1.0f / square_root(sum / static_cast<float>(width) + epsilon);
    for (i = 0; i + kUnitRows <= width; i += kUnitRows) {
        const Floats even = rounded_bf16(mul(load(x + i), splat(inverse)));
        store(out + i, rounded_bf16(mul(even, load(gain + i))));
    }
    for (; i < width; ++i) out[i] = round_bf16(round_bf16(x[i] * inverse) * gain[i]);
}

void quantize_int16(const float* x, uint32_t blocks, Int16Block* out) {
    for (uint32_t b = 0; b < blocks; ++b, x += kMxBlock, ++out) {
        Ints codes[2];
        out->scale = quantize_block(x, kInt16Largest, codes) / 2;
        for (uint32_t half = 0; half < 2; ++half) {
            store_in_block_order(out->high + half * kUnitRows, high_digit(codes[half]));
            store_in_block_order(out->low + half * kUnitRows, codes[half]);
        }
        out->balance = -12 * sum_of(add(codes[0], codes[1]));
    }
}

void quantize_int8(const float* x, uint32_t blocks, Int8Block* out) {
    for (uint32_t b = 0; b < blocks; ++b, x += kMxBlock, ++out) {
        Ints codes[2];
        out->scale = quantize_block(x, 127.0f, codes) / 2;
        for (uint32_t half = 0; half < 2; ++half)
            store_in_block_order(out->codes + half * kUnitRows, codes[half]);
        out->balance = -12 * sum_of(add(codes[0], codes[1]));
    }
}

void gate(const float* gate, const float* up, uint32_t count, float* out) {
    uint32_t i = 0;
    for (; i + kUnitRows <= count; i += kUnitRows) {
        const Floats g = rounded_bf16(load(gate + i));
        // 1 / (1 + e^-g), from e^-|g|, which never overflows: e^-|g| or 1, over their sum.
        const Floats e = exp_negative(mul(magnitude(g), splat(-1.0f)));
        const Floats one = splat(1.0f);
        const Floats top =
            add(zero_below(one, g, 0.0f), zero_below(e, mul(g, splat(-1.0f)), 0x1p-149f));
        const Floats sigmoid = divide(top, add(one, e));
        store(out + i, rounded_bf16(mul(mul(g, sigmoid), rounded_bf16(load(up + i)))));
    }
    for (; i < count; ++i) {
        const float g = round_bf16(gate[i]);
        const float e = exp_negative(-__builtin_fabsf(g));
        const float sigmoid = (g < 0 ? e : 1.0f) / (1.0f + e);
        out[i] = round_bf16(g * sigmoid * round_bf16(up[i]));
    }
}

void add_weighted(const float* x, float weight, uint32_t count, float* sum) {
    for (uint32_t i = 0; i < count; ++i) sum[i] += weight * x[i];
}

void add_residual(const float* update, uint32_t count, float* x) {
    uint32_t i = 0;
    for (; i + kUnitRows <= count; i += kUnitRows)
        store(x + i, rounded_bf16(add(load(x + i), rounded_bf16(load(update + i)))));
    for (; i < count; ++i) x[i] = round_bf16(x[i] + round_bf16(update[i]));
}

float exp_sum(const float* x, uint32_t count, float scale, float top) {
    const Floats scales = splat(scale), shift = splat(-scale * top);
    // The smaller of 0 and y is minus the larger of 0 and -y.
    const Floats zero = splat(0), minus = splat(-1.0f);
    Floats sums = zero;
    uint32_t i = 0;
    for (; i + kUnitRows <= count; i += kUnitRows) {
        const Floats y = mul_add(load(x + i), scales, shift);
        sums = add(sums, exp_negative(mul(larger(mul(y, minus), zero), minus)));
    }
    float lanes[kUnitRows];
    store(lanes, sums);
    float sum = 0;
    for (; i < count; ++i) {
        const float y = scale * (x[i] - top);
        sum += exp_negative(y < 0 ? y : 0.0f);
    }
    for (const float lane : lanes) sum += lane;
    return sum;
}

}  // namespace tessera::TESSERA_ISA
