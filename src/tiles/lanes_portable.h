// Lanes in plain loops: what every other machine is compared with. Included by lanes.h only.
#pragma once

namespace tessera::TESSERA_ISA {

inline constexpr uint32_t kLanes = kUnitRows;

// Whether a kernel may hold the sums of two units and eight rows.
inline constexpr bool kManyRegisters = false;

struct Floats {
    float v[kLanes];
};
struct Words {
    uint32_t v[kLanes];
};
struct Ints {
    int32_t v[kLanes];
};
struct Pairs {
    Floats low, high;
};
struct Bytes {
    uint8_t v[kLanes][4];
};

template <typename Lane>
Floats each(Lane lane) {
    Floats out;
    for (uint32_t i = 0; i < kLanes; ++i) out.v[i] = lane(i);
    return out;
}

inline Floats splat(float x) {
    return each([=](uint32_t) { return x; });
}
inline Floats load(const float* from) {
    return each([=](uint32_t i) { return from[i]; });
}
inline void store(float* to, const Floats& x) {
    for (uint32_t i = 0; i < kLanes; ++i) to[i] = x.v[i];
}
inline Floats add(const Floats& a, const Floats& b) {
    return each([&](uint32_t i) { return a.v[i] + b.v[i]; });
}
inline Floats mul(const Floats& a, const Floats& b) {
    return each([&](uint32_t i) { return a.v[i] * b.v[i]; });
}
inline Floats mul_add(const Floats& a, const Floats& b, const Floats& c) {
    return each([&](uint32_t i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Floats larger(const Floats& a, const Floats& b) {
    return each([&](uint32_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
// x where `by` is at least `limit`, else 0.
inline Floats zero_below(const Floats& x, const Floats& by, float limit) {
    return each([&](uint32_t i) { return by.v[i] < limit ? 0.0f : x.v[i]; });
}
// 2^n of whole numbers from -126 to 0.
inline Floats power_of_two(const Floats& n) {
    return each([&](uint32_t i) {
        const int32_t bits = (static_cast<int32_t>(n.v[i]) + 127) << 23;
        float power;
        std::memcpy(&power, &bits, 4);
        return power;
    });
}
inline Floats divide(const Floats& a, const Floats& b) {
    return each([&](uint32_t i) { return a.v[i] / b.v[i]; });
}
inline Floats rounded_bf16(const Floats& x) {
    return each([&](uint32_t i) { return round_bf16(x.v[i]); });
}
inline Words load_words(const std::byte* from) {
    Words out;
    std::memcpy(&out, from, sizeof out);
    return out;
}
inline Floats as_floats(const Words& words) {
    Floats out;
    std::memcpy(&out, &words, sizeof out);
    return out;
}
// 16 bf16 values that follow each other.
inline Floats load_bf16(const bf16* from) {
    return each([=](uint32_t i) { return to_float(from[i]); });
}

// Columns 2 * step and 2 * step + 1 of a group.
template <uint32_t step>
Pairs e4m3_pairs(const Words& words) {
    const auto code = [&](uint32_t i, uint32_t shift) {
        return e4m3_to_float(static_cast<uint8_t>(words.v[i] >> shift));
    };
    return {each([&](uint32_t i) { return code(i, 8 * step); }),
            each([&](uint32_t i) { return code(i, 16 + 8 * step); })};
}
inline Pairs bf16_pairs(const Words& words) {
    return {
        each([&](uint32_t i) { return to_float(bf16{static_cast<uint16_t>(words.v[i])}); }),
        each([&](uint32_t i) { return to_float(bf16{static_cast<uint16_t>(words.v[i] >> 16)}); })};
}
inline Floats e8m0_scales(const std::byte* from) {
    return each([=](uint32_t i) { return e8m0_to_float(static_cast<uint8_t>(from[i])); });
}

// ------------------------------------------------------------------ integers

inline Ints as_ints(const Words& words) {
    Ints out;
    std::memcpy(&out, &words, sizeof out);
    return out;
}
inline Ints add(const Ints& a, const Ints& b) {
    Ints out;
    for (uint32_t i = 0; i < kLanes; ++i)
        out.v[i] =
            static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i]));
    return out;
}
inline Ints times_256(const Ints& x) {
    Ints out;
    for (uint32_t i = 0; i < kLanes; ++i) out.v[i] = x.v[i] * 256;
    return out;
}
// To the nearest whole number, ties to even; of magnitudes below 2^22.
inline Ints to_ints(const Floats& x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
    Ints out;
    for (uint32_t i = 0; i < kLanes; ++i)
        out.v[i] = static_cast<int32_t>((x.v[i] + kRound) - kRound);
    return out;
}
// (x + 128) / 256, downwards: what is left of x is the low byte, from -128 to 127.
inline Ints high_digit(const Ints& x) {
    Ints out;
    for (uint32_t i = 0; i < kLanes; ++i) out.v[i] = (x.v[i] + 128) >> 8;
    return out;
}
// The low bytes, where codes of an mxfp4 block stand: kBlockOrder in each eight.
inline void store_in_block_order(int8_t* to, const Ints& x) {
    for (uint32_t i = 0; i < kLanes; ++i)
        to[i / 8 * 8 + kBlockOrder[i % 8]] = static_cast<int8_t>(x.v[i]);
}
inline void store(int32_t* to, const Ints& x) {
    std::memcpy(to, x.v, sizeof x.v);
}
inline Ints splat_int(int32_t x) {
    Ints out;
    for (int32_t& lane : out.v) lane = x;
    return out;
}
// The four low, or high, nibbles of a group's lanes.
template <bool high>
Bytes e2m1_bytes(const Words& words) {
    Bytes out;
    for (uint32_t i = 0; i < kLanes; ++i) {
        for (uint32_t byte = 0; byte < 4; ++byte) {
            const uint32_t code = words.v[i] >> (8 * byte + (high ? 4 : 0)) & 15;
            out.v[i][byte] = static_cast<uint8_t>(2 * kE2m1[code] + 12);
        }
    }
    return out;
}
// sum + the products of four unsigned bytes with four activations.
inline Ints dot4(const Ints& sum, const Bytes& w, const int8_t* a) {
    Ints out = sum;
    for (uint32_t i = 0; i < kLanes; ++i)
        for (uint32_t byte = 0; byte < 4; ++byte) out.v[i] += w.v[i][byte] * a[byte];
    return out;
}
inline Floats to_floats(const Ints& x) {
    return each([&](uint32_t i) { return static_cast<float>(x.v[i]); });
}

}  // namespace tessera::TESSERA_ISA
