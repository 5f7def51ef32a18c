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
    float tops[kUnitRows], sums[kUnitRows];
    for (uint32_t lane = 0; lane < kUnitRows; ++lane) {
        tops[lane] = kMasked;
        sums[lane] = 0;
    }
    for (uint32_t i = 0; i < count; i += kUnitRows) {
        for (uint32_t lane = 0; lane < kUnitRows; ++lane)
            tops[lane] = p[i + lane] > tops[lane] ? p[i + lane] : tops[lane];
    }
    float top = kMasked;
    for (const float lane : tops) top = lane > top ? lane : top;
    for (uint32_t i = 0; i < count; i += kUnitRows) {
        for (uint32_t lane = 0; lane < kUnitRows; ++lane) {
            p[i + lane] = exp_negative(p[i + lane] - top);
            sums[lane] += p[i + lane];
        }
    }
    float sum = 0;
    for (const float lane : sums) sum += lane;
    highest = top;
    total = sum;
}

template <uint32_t heads>
void mix(const AttendTask& task, const float* p, float* out) {
    const auto width = static_cast<uint32_t>(value_row_elements(task.v_head_dim));
    const uint32_t origin = task.first / kUnitRows * kUnitRows;  // of p
    for (uint32_t d = 0; d < width; d += kUnitRows) {
        Floats sum[heads];
#pragma GCC unroll 8
        for (uint32_t h = 0; h < heads; ++h) sum[h] = splat(0);
        for (uint32_t at = task.first; at <= task.last;) {
            // To the end of the tile: memory wraps only between tiles.
            const uint32_t tile_end = (at / kUnitRows + 1) * kUnitRows;
            const uint32_t end = tile_end <= task.last ? tile_end : task.last + 1;
            const bf16* row = task.values + size_t{at % task.ring} * width + d;
            for (; at < end; ++at, row += width) {
                const Floats value = load_bf16(row);
#pragma GCC unroll 8
                for (uint32_t h = 0; h < heads; ++h)
                    sum[h] = mul_add(splat(p[h * kScoreStride + at - origin]), value, sum[h]);
            }
        }
#pragma GCC unroll 8
        for (uint32_t h = 0; h < heads; ++h) store(out + h * task.out_stride + d, sum[h]);
    }
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
    gate,
    add_weighted,
    add_residual,
    attend,
    merge};

}  // namespace tessera::TESSERA_ISA
