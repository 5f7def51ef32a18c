// What the tests of kernels share: every instruction set that this processor has, seeded numbers,
// and packed units whose values are read back from the description in tiles/packed.h by code of its
// own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/numbers.h"
#include "tiles/kernels.h"

namespace tessera::test {

// A test for each instruction set of the house; skipped where the processor lacks it.
class EachIsa : public testing::TestWithParam<Isa> {
  protected:
    void SetUp() override {
        found_ = find_kernels(GetParam());
        if (found_ == nullptr) GTEST_SKIP() << "this processor has no " << isa_name(GetParam());
    }
    const Kernels& kernels() const { return *found_; }

  private:
    const Kernels* found_ = nullptr;
};

inline std::string isa_test_name(const testing::TestParamInfo<Isa>& info) {
    std::string name(isa_name(info.param));
    std::ranges::replace(name, '-', '_');
    return name;
}

// Seeded numbers, the same with every standard library.
class Draw {
  public:
    explicit Draw(uint64_t seed) : bits_(seed) {}

    uint32_t below(uint32_t limit) { return static_cast<uint32_t>(bits_() >> 32) % limit; }
    int32_t between(int32_t low, int32_t high) {
        return low + static_cast<int32_t>(below(static_cast<uint32_t>(high - low + 1)));
    }
    float unit() { return static_cast<float>(between(-(1 << 23), 1 << 23)) * 0x1p-23f; }
    bf16 half() { return to_bf16(unit()); }
    float rough() { return round_bf16(unit()); }

  private:
    std::mt19937_64 bits_;
};

inline uint32_t bits_of(float value) {
    return std::bit_cast<uint32_t>(value);
}

// Half the distance between neighbours among bf16 values as large as `value`.
inline double half_step_bf16(double value) {
    return std::max(std::abs(value), 0x1p-126) * 0x1p-8;
}

inline const char* format_name(Format format) {
    return format == Format::mxfp4  ? "mxfp4"
           : format == Format::fp8  ? "fp8"
           : format == Format::bf16 ? "bf16"
                                    : "f32";
}

// Weights in tile order, byte by byte.
struct Packed {
    Packed(Format in, uint32_t unit_count, uint32_t panel_count)
        : format(in),
          units(unit_count),
          panels(panel_count),
          bytes(size_t{units} * panels * panel_bytes(format)) {}

    uint32_t rows() const { return units * kUnitRows; }
    uint32_t columns() const { return panels * kPanelColumns; }
    std::byte* panel(uint32_t row, uint32_t column) {
        return &bytes[(size_t{row / kUnitRows} * panels + column / kPanelColumns) *
                      panel_bytes(format)];
    }
    const std::byte* panel(uint32_t row, uint32_t column) const {
        return const_cast<Packed*>(this)->panel(row, column);
    }

    Format format;
    uint32_t units, panels;
    std::vector<std::byte> bytes;
};

// Where the scale of (row, column) lies in its panel.
inline size_t scale_offset(Format format, uint32_t row, uint32_t column) {
    const uint32_t lane = row % 16;
    return format == Format::mxfp4 ? size_t{column % 128 / 32 * 16 + lane} : size_t{4 * lane};
}

// The code of (row, column): of 4, 8, 16 or 32 bits.
inline uint32_t code_of(const Packed& packed, uint32_t row, uint32_t column) {
    const std::byte* const panel = packed.panel(row, column);
    const uint32_t lane = row % 16, c = column % 128;
    const auto word = [&](uint32_t scale_bytes, uint32_t group) {
        uint32_t bits;
        std::memcpy(&bits, panel + scale_bytes + 64 * group + 4 * lane, 4);
        return bits;
    };
    switch (packed.format) {
        case Format::mxfp4: {
            const uint32_t in_group = c % 8;
            const uint32_t nibble = in_group % 2 == 0 ? in_group / 2 : 4 + in_group / 2;
            return word(64, c / 8) >> (4 * nibble) & 15;
        }
        case Format::fp8: {
            const uint32_t byte = std::vector<uint32_t>{0, 2, 1, 3}[c % 4];
            return word(64, c / 4) >> (8 * byte) & 255;
        }
        case Format::bf16:
            return word(0, c / 2) >> (16 * (c % 2)) & 65535;
        case Format::f32:
            return word(0, c);
    }
    return 0;
}

inline double value_of_code(Format format, uint32_t code) {
    switch (format) {
        case Format::mxfp4: {
            const double magnitude = std::vector<double>{0, 0.5, 1, 1.5, 2, 3, 4, 6}[code & 7];
            return code & 8 ? -magnitude : magnitude;
        }
        case Format::fp8: {
            const int exponent = static_cast<int>(code >> 3 & 15);
            const double fraction = (code & 7) / 8.0;
            const double magnitude =
                exponent == 0 ? std::ldexp(fraction, -6) : std::ldexp(1 + fraction, exponent - 7);
            return code & 128 ? -magnitude : magnitude;
        }
        case Format::bf16:
            return std::bit_cast<float>(code << 16);
        case Format::f32:
            return std::bit_cast<float>(code);
    }
    return 0;
}

inline double scale_of(const Packed& packed, uint32_t row, uint32_t column) {
    const std::byte* at = packed.panel(row, column) + scale_offset(packed.format, row, column);
    if (packed.format == Format::mxfp4) return std::ldexp(1.0, std::to_integer<int>(*at) - 127);
    if (packed.format != Format::fp8) return 1;
    float scale;
    std::memcpy(&scale, at, 4);
    return scale;
}

inline double value_of(const Packed& packed, uint32_t row, uint32_t column) {
    return value_of_code(packed.format, code_of(packed, row, column)) *
           scale_of(packed, row, column);
}

// Every byte drawn: all codes but NaN; e8m0 scales from `low` to `high`, f32 scales near one.
inline Packed random_packed(Format format, uint32_t units, uint32_t panels, Draw& draw,
                            int32_t low = 120, int32_t high = 130) {
    Packed packed(format, units, panels);
    for (std::byte& byte : packed.bytes) {
        uint32_t code = draw.below(256);
        if (format == Format::fp8 && (code & 127) == 127) code -= 1;
        byte = static_cast<std::byte>(code);
    }
    if (format == Format::bf16) {
        for (size_t i = 0; i < packed.bytes.size(); i += 2) {
            const bf16 value = draw.half();
            std::memcpy(&packed.bytes[i], &value, 2);
        }
    }
    if (format == Format::f32) {
        for (size_t i = 0; i < packed.bytes.size(); i += 4) {
            const float value = draw.unit();
            std::memcpy(&packed.bytes[i], &value, 4);
        }
    }
    for (uint32_t row = 0; row < packed.rows(); ++row) {
        for (uint32_t column = 0; column < packed.columns(); column += kMxBlock) {
            std::byte* const at = packed.panel(row, column) + scale_offset(format, row, column);
            if (format == Format::mxfp4) *at = static_cast<std::byte>(draw.between(low, high));
            if (format == Format::fp8) {
                const float scale = 1.0f + 0.9f * draw.unit();
                std::memcpy(at, &scale, 4);
            }
        }
    }
    return packed;
}

// ------------------------------------------------------------------------------- blocks of
// integers

// Where column c of 32 stands in a block: of 8 columns 0 4 1 5, then 2 6 3 7.
inline uint32_t place_of(uint32_t c) {
    constexpr uint32_t kColumns[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    return c / 8 * 8 +
           static_cast<uint32_t>(std::ranges::find(kColumns, c % 8) - std::begin(kColumns));
}

inline constexpr int32_t largest_code(const Int16Block&) {
    return 32512;  // 127 * 256
}
inline constexpr int32_t largest_code(const Int8Block&) {
    return 127;
}
inline int32_t code_of(const Int16Block& block, uint32_t c) {
    return 256 * block.high[place_of(c)] + block.low[place_of(c)];
}
inline int32_t code_of(const Int8Block& block, uint32_t c) {
    return block.codes[place_of(c)];
}

// Sets the code and keeps the balance. High is such that low is from -128 to 127.
template <typename Block>
void set_code(Block& block, uint32_t c, int32_t code) {
    block.balance += 12 * code_of(block, c) - 12 * code;
    if constexpr (requires { block.high; }) {
        const int32_t high = (code + 128 + 65536) / 256 - 256;
        block.high[place_of(c)] = static_cast<int8_t>(high);
        block.low[place_of(c)] = static_cast<int8_t>(code - 256 * high);
    } else {
        block.codes[place_of(c)] = static_cast<int8_t>(code);
    }
}

// Codes count in twice the stored scale.
template <typename Block>
double activation_of(const Block& block, uint32_t c) {
    return 2.0 * block.scale * code_of(block, c);
}

// Rows of activations, each somewhere else in memory, in an order of their own.
template <typename T>
class Scattered {
  public:
    Scattered(uint32_t rows, size_t width) : memory_(rows, std::vector<T>(width)) {
        for (uint32_t row = 0; row < rows; ++row)
            at_.push_back(memory_[(row * 7 + 3) % rows].data());
        // With a multiple of 7 rows the walk above is no permutation.
        if (rows % 7 == 0) {
            for (uint32_t row = 0; row < rows; ++row) at_[row] = memory_[rows - 1 - row].data();
        }
    }
    T* operator[](uint32_t row) { return const_cast<T*>(at_[row]); }
    const T* operator[](uint32_t row) const { return at_[row]; }
    const T* const* at(uint32_t row = 0) const { return at_.data() + row; }

  private:
    std::vector<std::vector<T>> memory_;
    std::vector<const T*> at_;
};

}  // namespace tessera::test
