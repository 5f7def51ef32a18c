// Lanes on AVX2 with FMA: two registers. Included by lanes.h only.
#pragma once

#include <immintrin.h>

namespace tessera::TESSERA_ISA {

// Whether a kernel may hold the sums of two units and eight rows.
inline constexpr bool kManyRegisters = false;

struct Floats {
    __m256 v[2];
};
struct Words {
    __m256i v[2];
};
struct Ints {
    __m256i v[2];
};
struct Pairs {
    Floats low, high;
};
struct Bytes {
    __m256i v[2];
};

inline Floats splat(float x) {
    return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}};
}
inline Floats load(const float* from) {
    return {{_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}};
}
inline void store(float* to, Floats x) {
    _mm256_storeu_ps(to, x.v[0]);
    _mm256_storeu_ps(to + 8, x.v[1]);
}
inline Floats add(Floats a, Floats b) {
    return {{_mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1])}};
}
inline Floats mul(Floats a, Floats b) {
    return {{_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}};
}
inline Floats mul_add(Floats a, Floats b, Floats c) {
    return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}
inline Floats larger(Floats a, Floats b) {
    return {{_mm256_max_ps(a.v[0], b.v[0]), _mm256_max_ps(a.v[1], b.v[1])}};
}
// x where `by` is at least `limit`, else 0.
inline Floats zero_below(Floats x, Floats by, float limit) {
    const __m256 least = _mm256_set1_ps(limit);
    return {{_mm256_andnot_ps(_mm256_cmp_ps(by.v[0], least, _CMP_LT_OQ), x.v[0]),
             _mm256_andnot_ps(_mm256_cmp_ps(by.v[1], least, _CMP_LT_OQ), x.v[1])}};
}
// 2^n of whole numbers from -126 to 0.
inline Floats power_of_two(Floats n) {
    Floats out;
    for (int half = 0; half < 2; ++half) {
        const __m256i biased =
            _mm256_add_epi32(_mm256_cvtps_epi32(n.v[half]), _mm256_set1_epi32(127));
        out.v[half] = _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
    }
    return out;
}
inline Floats divide(Floats a, Floats b) {
    return {{_mm256_div_ps(a.v[0], b.v[0]), _mm256_div_ps(a.v[1], b.v[1])}};
}
inline Floats rounded_bf16(Floats x) {
    const __m256i top = _mm256_set1_epi32(-0x10000);
    Floats out;
    for (int half = 0; half < 2; ++half) {
        const __m256i bits = _mm256_castps_si256(x.v[half]);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
        const __m256 nan = _mm256_cmp_ps(x.v[half], x.v[half], _CMP_UNORD_Q);
        const __m256i kept = _mm256_blendv_epi8(up, quiet, _mm256_castps_si256(nan));
        out.v[half] = _mm256_castsi256_ps(_mm256_and_si256(kept, top));
    }
    return out;
}
inline Words load_words(const std::byte* from) {
    const auto* at = reinterpret_cast<const __m256i*>(from);
    return {{_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)}};
}
inline Floats as_floats(Words words) {
    return {{_mm256_castsi256_ps(words.v[0]), _mm256_castsi256_ps(words.v[1])}};
}
inline __m256 bf16_half(const bf16* from) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
inline Floats load_bf16(const bf16* from) {
    return {{bf16_half(from), bf16_half(from + 8)}};
}

inline Floats e4m3_at(Words words, int shift) {
    Floats out;
    for (int half = 0; half < 2; ++half) {
        const __m256i code = _mm256_slli_epi32(words.v[half], 24 - shift);  // the byte on top
        const __m256i magnitude =
            _mm256_srli_epi32(_mm256_and_si256(code, _mm256_set1_epi32(0x7f000000)), 4);
        const __m256i normal = _mm256_add_epi32(magnitude, _mm256_set1_epi32(120 << 23));
        const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(1 << 23), magnitude);
        const __m256 subnormal = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32(magnitude, 20)),
                                               _mm256_set1_ps(0x1p-9f));
        const __m256 value =
            _mm256_blendv_ps(_mm256_castsi256_ps(normal), subnormal, _mm256_castsi256_ps(small));
        const __m256i sign = _mm256_and_si256(code, _mm256_set1_epi32(INT32_MIN));
        out.v[half] = _mm256_or_ps(value, _mm256_castsi256_ps(sign));
    }
    return out;
}
template <uint32_t step>
Pairs e4m3_pairs(Words words) {
    return {e4m3_at(words, 8 * step), e4m3_at(words, 16 + 8 * step)};
}
inline Pairs bf16_pairs(Words words) {
    const __m256i top = _mm256_set1_epi32(-0x10000);
    Pairs out;
    for (int half = 0; half < 2; ++half) {
        out.low.v[half] = _mm256_castsi256_ps(_mm256_slli_epi32(words.v[half], 16));
        out.high.v[half] = _mm256_castsi256_ps(_mm256_and_si256(words.v[half], top));
    }
    return out;
}
inline Floats e8m0_scales(const std::byte* from) {
    Floats out;
    for (int half = 0; half < 2; ++half) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * half));
        const __m256i exponents = _mm256_cvtepu8_epi32(bytes);
        // Byte 0 is the subnormal 2^-127.
        const __m256i zero = _mm256_cmpeq_epi32(exponents, _mm256_setzero_si256());
        const __m256i subnormal = _mm256_and_si256(zero, _mm256_set1_epi32(1 << 22));
        out.v[half] =
            _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32(exponents, 23), subnormal));
    }
    return out;
}

// ------------------------------------------------------------------ integers

inline Ints as_ints(Words words) {
    return {{words.v[0], words.v[1]}};
}
inline Ints add(Ints a, Ints b) {
    return {{_mm256_add_epi32(a.v[0], b.v[0]), _mm256_add_epi32(a.v[1], b.v[1])}};
}
inline Ints times_256(Ints x) {
    return {{_mm256_slli_epi32(x.v[0], 8), _mm256_slli_epi32(x.v[1], 8)}};
}
// To the nearest whole number, ties to even.
inline Ints to_ints(Floats x) {
    return {{_mm256_cvtps_epi32(x.v[0]), _mm256_cvtps_epi32(x.v[1])}};
}
// (x + 128) / 256, downwards: what is left of x is the low byte, from -128 to 127.
inline Ints high_digit(Ints x) {
    const __m256i half = _mm256_set1_epi32(128);
    return {{_mm256_srai_epi32(_mm256_add_epi32(x.v[0], half), 8),
             _mm256_srai_epi32(_mm256_add_epi32(x.v[1], half), 8)}};
}
// The low bytes, where codes of an mxfp4 block stand: kBlockOrder in each eight.
inline void store_in_block_order(int8_t* to, Ints x) {
    const __m128i bytes = _mm_setr_epi8(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    for (int half = 0; half < 2; ++half) {
        const __m128i low = _mm_shuffle_epi8(_mm256_castsi256_si128(x.v[half]), bytes);
        const __m128i high = _mm_shuffle_epi8(_mm256_extracti128_si256(x.v[half], 1), bytes);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to + 8 * half), _mm_unpacklo_epi8(low, high));
    }
}
inline void store(int32_t* to, Ints x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x.v[0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), x.v[1]);
}
inline Ints splat_int(int32_t x) {
    return {{_mm256_set1_epi32(x), _mm256_set1_epi32(x)}};
}

// 2 * e2m1 + 12 of the code in each byte.
inline __m256i e2m1_offset(__m256i codes) {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    return _mm256_shuffle_epi8(table, codes);
}

template <bool high>
Bytes e2m1_bytes(Words words) {
    Bytes out;
    for (int half = 0; half < 2; ++half) {
        const __m256i nibbles = high ? _mm256_srli_epi16(words.v[half], 4) : words.v[half];
        out.v[half] = e2m1_offset(_mm256_and_si256(nibbles, _mm256_set1_epi8(15)));
    }
    return out;
}
inline Ints dot4(Ints sum, Bytes w, const int8_t* a) {
    int32_t four;
    std::memcpy(&four, a, 4);
    const __m256i splat = _mm256_set1_epi32(four);
    for (int half = 0; half < 2; ++half) {
        // 24 * 127 * 2 stays far below the limit of 16 bits: nothing saturates.
        const __m256i pairs = _mm256_maddubs_epi16(w.v[half], splat);
        const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        sum.v[half] = _mm256_add_epi32(sum.v[half], fours);
    }
    return sum;
}
inline Floats to_floats(Ints x) {
    return {{_mm256_cvtepi32_ps(x.v[0]), _mm256_cvtepi32_ps(x.v[1])}};
}

}  // namespace tessera::TESSERA_ISA
