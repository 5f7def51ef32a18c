// Lanes on AVX-512: one register. With VNNI two 16-bit columns, or four 8-bit ones, are one
// instruction. Included by lanes.h only.
#pragma once

#include <immintrin.h>

namespace tessera::TESSERA_ISA {

// Whether a kernel may hold the sums of two units and eight rows.
inline constexpr bool kManyRegisters = true;

struct Floats {
    __m512 v;
};
struct Words {
    __m512i v;
};
struct Ints {
    __m512i v;
};
struct Pairs {
    Floats low, high;
};
struct Bytes {
    __m512i v;
};

inline Floats splat(float x) {
    return {_mm512_set1_ps(x)};
}
inline Floats load(const float* from) {
    return {_mm512_loadu_ps(from)};
}
inline void store(float* to, Floats x) {
    _mm512_storeu_ps(to, x.v);
}
inline Floats add(Floats a, Floats b) {
    return {_mm512_add_ps(a.v, b.v)};
}
inline Floats mul(Floats a, Floats b) {
    return {_mm512_mul_ps(a.v, b.v)};
}
inline Floats mul_add(Floats a, Floats b, Floats c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline Floats larger(Floats a, Floats b) {
    return {_mm512_max_ps(a.v, b.v)};
}
// x where `by` is at least `limit`, else 0.
inline Floats zero_below(Floats x, Floats by, float limit) {
    const __mmask16 kept = _mm512_cmp_ps_mask(by.v, _mm512_set1_ps(limit), _CMP_NLT_UQ);
    return {_mm512_maskz_mov_ps(kept, x.v)};
}
// 2^n of whole numbers from -126 to 0.
inline Floats power_of_two(Floats n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
inline Floats divide(Floats a, Floats b) {
    return {_mm512_div_ps(a.v, b.v)};
}
inline Floats rounded_bf16(Floats x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
    return {_mm512_castsi512_ps(_mm512_and_si512(kept, _mm512_set1_epi32(-0x10000)))};
}
inline Words load_words(const std::byte* from) {
    return {_mm512_loadu_si512(from)};
}
inline Floats as_floats(Words words) {
    return {_mm512_castsi512_ps(words.v)};
}
inline Floats load_bf16(const bf16* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}
inline Floats e8m0_scales(const std::byte* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m512i exponents = _mm512_cvtepu8_epi32(bytes);
    const __m512i bits = _mm512_slli_epi32(exponents, 23);
    // Byte 0 is the subnormal 2^-127.
    const __mmask16 zero = _mm512_testn_epi32_mask(exponents, exponents);
    return {_mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, zero, _mm512_set1_epi32(1 << 22)))};
}

// The two bf16 halves of each lane.
inline Pairs bf16_pairs(Words words) {
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(words.v, 16))},
            {_mm512_castsi512_ps(_mm512_and_si512(words.v, _mm512_set1_epi32(-0x10000)))}};
}

// As bf16 first, two columns at once: a code's exponent and mantissa move to bf16's places and the
// bias is added; a subnormal is looked up: m * 2^-9.
template <uint32_t step>
Pairs e4m3_pairs(Words words) {
    const __m512i code = step == 0 ? _mm512_slli_epi16(words.v, 8) : words.v;
    const __m512i magnitude =
        _mm512_srli_epi16(_mm512_and_si512(code, _mm512_set1_epi16(0x7f00)), 4);
    const __m512i subnormals = _mm512_castsi128_si512(
        _mm_setr_epi16(0x0000, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
    const __mmask32 small = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(0x80));
    const __m512i normal = _mm512_add_epi16(magnitude, _mm512_set1_epi16(120 << 7));
    const __m512i value =
        _mm512_mask_permutexvar_epi16(normal, small, _mm512_srli_epi16(magnitude, 4), subnormals);
    // value | (code & sign)
    return bf16_pairs({_mm512_ternarylogic_epi32(value, code, _mm512_set1_epi16(-0x8000), 0xf8)});
}

// ------------------------------------------------------------------ integers

inline Ints as_ints(Words words) {
    return {words.v};
}
inline Ints add(Ints a, Ints b) {
    return {_mm512_add_epi32(a.v, b.v)};
}
inline Ints times_256(Ints x) {
    return {_mm512_slli_epi32(x.v, 8)};
}
// To the nearest whole number, ties to even.
inline Ints to_ints(Floats x) {
    return {_mm512_cvtps_epi32(x.v)};
}
// (x + 128) / 256, downwards: what is left of x is the low byte, from -128 to 127.
inline Ints high_digit(Ints x) {
    return {_mm512_srai_epi32(_mm512_add_epi32(x.v, _mm512_set1_epi32(128)), 8)};
}
// The low bytes, where codes of an mxfp4 block stand: kBlockOrder in each eight.
inline void store_in_block_order(int8_t* to, Ints x) {
    const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm_shuffle_epi8(_mm512_cvtepi32_epi8(x.v), order));
}
inline void store(int32_t* to, Ints x) {
    _mm512_storeu_si512(to, x.v);
}
inline Ints splat_int(int32_t x) {
    return {_mm512_set1_epi32(x)};
}

template <bool high>
Bytes e2m1_bytes(Words words) {
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m512i nibbles = high ? _mm512_srli_epi16(words.v, 4) : words.v;
    return {_mm512_shuffle_epi8(table, _mm512_and_si512(nibbles, _mm512_set1_epi8(15)))};
}
inline Ints dot4(Ints sum, Bytes w, const int8_t* a) {
    int32_t four;
    std::memcpy(&four, a, 4);
    const __m512i splat = _mm512_set1_epi32(four);
#if defined(__AVX512VNNI__)
    return {_mm512_dpbusd_epi32(sum.v, w.v, splat)};
#else
    // 24 * 127 * 2 stays far below the limit of 16 bits: nothing saturates.
    const __m512i pairs = _mm512_maddubs_epi16(w.v, splat);
    return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
#endif
}
inline Floats to_floats(Ints x) {
    return {_mm512_cvtepi32_ps(x.v)};
}

}  // namespace tessera::TESSERA_ISA
