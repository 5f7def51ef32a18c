// Attention over one chunk of keys: scores with a lane for each of 16 positions, values with a lane
// for each of 16 dims.
#include "tiles/table_cpu.h"

namespace tessera::TESSERA_ISA {
namespace {

constexpr float kMasked = -3.0e38f;

// Heads that are computed together: one conversion of a key or a value serves them all.
constexpr uint32_t kHeadsMax = 8;

// scores[h * kScoreStride + i] = scale * query of head h . key(begin + i), where begin is `first`
// rounded down to a tile; masked outside [first, last].
template <uint32_t heads>
void score(const AttendTask& task, const float* query, float* scores) {
    const uint32_t dim = task.head_dim;
    const uint64_t tile_elements = key_tile_elements(task.head_dim);
    for (uint32_t begin = task.first / kUnitRows * kUnitRows; begin <= task.last;
         begin += kUnitRows, scores += kUnitRows) {
        const auto* group = reinterpret_cast<const std::byte*>(
            task.keys + begin % task.ring / kUnitRows * tile_elements);
        Floats even[heads], odd[heads];
#pragma GCC unroll 8
        for (uint32_t h = 0; h < heads; ++h) even[h] = odd[h] = splat(0);
        for (uint32_t d = 0; d < dim; d += 2, group += kGroupBytes) {
            const Pairs key = bf16_pairs(load_words(group));
#pragma GCC unroll 8
            for (uint32_t h = 0; h < heads; ++h) {
                even[h] = mul_add(key.low, splat(query[h * dim + d]), even[h]);
                odd[h] = mul_add(key.high, splat(query[h * dim + d + 1]), odd[h]);
            }
        }
        const bool whole = begin >= task.first && begin + kUnitRows - 1 <= task.last;
        for (uint32_t h = 0; h < heads; ++h) {
            float* const out = scores + h * kScoreStride;
            store(out, mul(add(even[h], odd[h]), splat(task.scale)));
            for (uint32_t lane = 0; !whole && lane < kUnitRows; ++lane) {
                if (begin + lane < task.first || begin + lane > task.last) out[lane] = kMasked;
            }
        }
    }
}

// p[i] = e^(p[i] - highest); returns the highest and the sum. `count` is a multiple of 16.
void softmax_part(float* p, uint32_t count, float& highest, float& total) {
    Floats tops = splat(kMasked);
    for (uint32_t i = 0; i < count; i += kUnitRows) tops = larger(load(p + i), tops);
    float lanes[kUnitRows];
    store(lanes, tops);
    float top = kMasked;
    for (const float lane : lanes) top = lane > top ? lane : top;
    Floats sums = splat(0);
    for (uint32_t i = 0; i < count; i += kUnitRows) {
        const Floats power = exp_negative(add(load(p + i), splat(-top)));
        store(p + i, power);
        sums = add(sums, power);
    }
    store(lanes, sums);
    float sum = 0;
    for (const float lane : lanes) sum += lane;
    highest = top;
    total = sum;
}

// Groups of 16 dims that are mixed at once: with few heads one group's sums would wait for each
// other.
constexpr uint32_t mixed_groups(uint32_t heads) {
    return heads <= 4 ? 2 : 1;
}

// out = the weighted sum of values, dims [d, d + 16 * groups).
template <uint32_t heads, uint32_t groups>
void mix_dims(const AttendTask& task, const float* p, uint32_t d, float* out) {
    const auto width = static_cast<uint32_t>(value_row_elements(task.v_head_dim));
    const uint32_t origin = task.first / kUnitRows * kUnitRows;  // of p
    Floats sum[groups][heads];
#pragma GCC unroll 8
    for (uint32_t g = 0; g < groups; ++g) {
#pragma GCC unroll 8
        for (uint32_t h = 0; h < heads; ++h) sum[g][h] = splat(0);
    }
    for (uint32_t at = task.first; at <= task.last;) {
        // To the end of the tile: memory wraps only between tiles.
        const uint32_t tile_end = (at / kUnitRows + 1) * kUnitRows;
        const uint32_t end = tile_end <= task.last ? tile_end : task.last + 1;
        const bf16* row = task.values + size_t{at % task.ring} * width + d;
        for (; at < end; ++at, row += width) {
            Floats value[groups];
#pragma GCC unroll 8
            for (uint32_t g = 0; g < groups; ++g) value[g] = load_bf16(row + g * kUnitRows);
#pragma GCC unroll 8
            for (uint32_t h = 0; h < heads; ++h) {
                const Floats weight = splat(p[h * kScoreStride + at - origin]);
#pragma GCC unroll 8
                for (uint32_t g = 0; g < groups; ++g)
                    sum[g][h] = mul_add(weight, value[g], sum[g][h]);
            }
        }
    }
#pragma GCC unroll 8
    for (uint32_t g = 0; g < groups; ++g) {
#pragma GCC unroll 8
        for (uint32_t h = 0; h < heads; ++h)
            store(out + h * task.out_stride + d + g * kUnitRows, sum[g][h]);
    }
}

template <uint32_t heads>
void mix(const AttendTask& task, const float* p, float* out) {
    constexpr uint32_t kGroups = mixed_groups(heads);
    const auto width = static_cast<uint32_t>(value_row_elements(task.v_head_dim));
    uint32_t d = 0;
    for (; d + kGroups * kUnitRows <= width; d += kGroups * kUnitRows)
        mix_dims<heads, kGroups>(task, p, d, out);
    for (; d < width; d += kUnitRows) mix_dims<heads, 1>(task, p, d, out);
}

using Score = void (*)(const AttendTask&, const float*, float*);
constexpr Score kScore[kHeadsMax] = {score<1>, score<2>, score<3>, score<4>,
                                     score<5>, score<6>, score<7>, score<8>};
using Mix = void (*)(const AttendTask&, const float*, float*);
constexpr Mix kMix[kHeadsMax] = {mix<1>, mix<2>, mix<3>, mix<4>, mix<5>, mix<6>, mix<7>, mix<8>};

}  // namespace

void attend(const AttendTask& task) {
    const uint32_t dim = task.head_dim;
    const uint32_t span = padded(task.last + 1 - task.first / kUnitRows * kUnitRows, kUnitRows);
    for (uint32_t head = 0; head < task.heads; head += kHeadsMax) {
        const uint32_t some = task.heads - head < kHeadsMax ? task.heads - head : kHeadsMax;
        float* const p = task.scratch + head * kScoreStride;
        kScore[some - 1](task, task.query + size_t{head} * dim, p);
        for (uint32_t h = 0; h < some; ++h)
            softmax_part(p + h * kScoreStride, span, task.highest[(head + h) * task.number_stride],
                         task.total[(head + h) * task.number_stride]);
        kMix[some - 1](task, p, task.out + head * task.out_stride);
    }
}

void merge(const float* values, const float* highest, const float* total, uint32_t parts,
           size_t value_stride, size_t number_stride, const float* sink, uint32_t v_head_dim,
           float* out) {
    float top = sink != nullptr ? *sink : kMasked;
    for (uint32_t i = 0; i < parts; ++i) {
        const float part = highest[i * number_stride];
        top = part > top ? part : top;
    }
    float sum = sink != nullptr ? exp_negative(*sink - top) : 0.0f;
    for (uint32_t i = 0; i < parts; ++i)
        sum += exp_negative(highest[i * number_stride] - top) * total[i * number_stride];
    const float inverse = 1.0f / sum;
    constexpr uint32_t kSpan = 64;
    for (uint32_t begin = 0; begin < v_head_dim; begin += kSpan) {
        const uint32_t count = v_head_dim - begin < kSpan ? v_head_dim - begin : kSpan;
        float mixed[kSpan] = {};
        for (uint32_t i = 0; i < parts; ++i) {
            const float weight = exp_negative(highest[i * number_stride] - top);
            const float* part = values + i * value_stride + begin;
            for (uint32_t d = 0; d < count; ++d) mixed[d] += weight * part[d];
        }
        for (uint32_t d = 0; d < count; ++d) out[begin + d] = round_bf16(mixed[d] * inverse);
    }
}

const Kernels kTable = {
#if defined(__AVX512VNNI__)
    Isa::avx512_vnni,
#elif defined(__AVX512F__)
    Isa::avx512,
#elif defined(__AVX2__)
    Isa::avx2,
#else
    Isa::portable,
#endif
    read,
    multiply,
    multiply_int16,
    multiply_int8,
    norm,
    quantize_int16,
    quantize_int8,
    to_mxfp4,
    gate,
    add_weighted,
    add_residual,
    exp_sum,
    attend,
    merge};

}  // namespace tessera::TESSERA_ISA
