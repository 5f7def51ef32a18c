// The matrix kernels of every instruction set against a double loop over values that were read from
// the documented layout, and against themselves: a row's result has the same bits in any company.
#include <concepts>

#include <gtest/gtest.h>

#include "tiles/support.h"

namespace tessera {
namespace {

using test::bits_of;
using test::Draw;
using test::format_name;
using test::Packed;
using test::random_packed;
using test::Scattered;
using test::value_of;

class MatrixKernels : public test::EachIsa {};

constexpr float kUntouched = 777;
constexpr uint32_t kRowCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 17};
constexpr Format kPlainFormats[] = {Format::fp8, Format::bf16, Format::f32};

struct Extents {
    uint32_t units, panels;
};
constexpr Extents kExtents[] = {{1, 1}, {1, 3}, {3, 2}, {2, 5}};

// Output of `rows` rows with untouched room behind each.
struct Out {
    Out(uint32_t count, uint32_t columns)
        : rows(count), width(columns), stride(columns + 5), values(rows * stride, kUntouched) {}

    float at(uint32_t row, uint32_t column) const { return values[row * stride + column]; }
    void expect_room_untouched() const {
        for (uint32_t row = 0; row < rows; ++row) {
            for (size_t i = width; i < stride; ++i)
                ASSERT_EQ(values[row * stride + i], kUntouched) << "row " << row;
        }
    }

    uint32_t rows, width;
    size_t stride;
    std::vector<float> values;
};

// ------------------------------------------------------------------------------- activations

template <typename Block>
constexpr int32_t kLargest = test::largest_code(Block{});

template <typename Block>
double activation(const Block& block, uint32_t c) {
    return test::activation_of(block, c);
}
double activation(float value, uint32_t) {
    return value;
}

// Columns that one element of a row holds.
template <typename T>
constexpr uint32_t kColumnsOf = std::same_as<T, float> ? 1 : kMxBlock;

template <typename Block>
Scattered<Block> random_rows(uint32_t rows, uint32_t columns, Draw& draw) {
    Scattered<Block> made(rows, columns / kMxBlock);
    for (uint32_t row = 0; row < rows; ++row) {
        for (uint32_t b = 0; b < columns / kMxBlock; ++b) {
            Block& block = made[row][b];
            for (uint32_t c = 0; c < kMxBlock; ++c)
                test::set_code(block, c, draw.between(-kLargest<Block>, kLargest<Block>));
            block.scale = (1 + 0.5f * draw.unit()) / (2 * static_cast<float>(kLargest<Block>));
        }
    }
    return made;
}
template <>
Scattered<float> random_rows<float>(uint32_t rows, uint32_t columns, Draw& draw) {
    Scattered<float> made(rows, columns);
    for (uint32_t row = 0; row < rows; ++row)
        for (uint32_t c = 0; c < columns; ++c) made[row][c] = draw.unit();
    return made;
}

// ------------------------------------------------------------------------------- one call

void call(const Kernels& k, const Packed& packed, const Rows<float>& rows, Out& out) {
    k.multiply(packed.format, packed.bytes.data(), packed.units, packed.panels, rows,
               out.values.data(), out.stride);
}
void call(const Kernels& k, const Packed& packed, const Rows<Int16Block>& rows, Out& out) {
    k.multiply_int16(packed.bytes.data(), packed.units, packed.panels, rows, out.values.data(),
                     out.stride);
}
void call(const Kernels& k, const Packed& packed, const Rows<Int8Block>& rows, Out& out) {
    k.multiply_int8(packed.bytes.data(), packed.units, packed.panels, rows, out.values.data(),
                    out.stride);
}

template <typename T>
Out multiply(const Kernels& kernels, const Packed& packed, const Scattered<T>& rows, uint32_t first,
             uint32_t count) {
    Out out(count, packed.rows());
    call(kernels, packed, Rows<T>{rows.at(first), count}, out);
    return out;
}

template <typename T>
void expect_products(const Kernels& kernels, const Packed& packed, const Scattered<T>& rows,
                     uint32_t count) {
    constexpr bool kFloats = std::same_as<T, float>;
    const Out out = multiply(kernels, packed, rows, 0, count);
    out.expect_room_untouched();
    const double blocks = packed.columns() / kMxBlock;
    for (uint32_t r = 0; r < packed.rows(); ++r) {
        std::vector<double> weights(packed.columns());
        for (uint32_t c = 0; c < packed.columns(); ++c) weights[c] = value_of(packed, r, c);
        for (uint32_t row = 0; row < count; ++row) {
            double sum = 0, size = 0;
            for (uint32_t b = 0; b < packed.columns(); b += kMxBlock) {
                double block = 0;
                for (uint32_t c = b; c < b + kMxBlock; ++c) {
                    const double product =
                        weights[c] * activation(rows[row][c / kColumnsOf<T>], c % kColumnsOf<T>);
                    block += product;
                    if (kFloats) size += std::abs(product);
                }
                sum += block;
                if (!kFloats) size += std::abs(block);  // inside a block of integers nothing rounds
            }
            // Every addition and multiplication on the longest way to the result rounds once. Where
            // the product of two scales is no normal float, it has fewer bits.
            const double roundings = (kFloats ? kMxBlock + 1 : 1) + 1 + 1.01 * blocks;
            const double lost = kFloats ? 0x1p-140 : blocks * kLargest<Int16Block> * 0x1p-141;
            ASSERT_NEAR(out.at(row, r), sum, roundings * 0x1p-24 * size + lost)
                << format_name(packed.format) << ", " << count << " rows: row " << row
                << ", output " << r;
        }
    }
}

TEST_P(MatrixKernels, FloatsMultiplyWhatTheLayoutSays) {
    Draw draw(1);
    for (const Format format : kPlainFormats) {
        for (const Extents& e : kExtents) {
            const Packed packed = random_packed(format, e.units, e.panels, draw);
            for (const uint32_t rows : kRowCounts)
                expect_products(kernels(), packed, random_rows<float>(rows, packed.columns(), draw),
                                rows);
        }
    }
}

template <typename Block>
void expect_blocks(const Kernels& kernels) {
    Draw draw(2);
    for (const Extents& e : kExtents) {
        const Packed packed = random_packed(Format::mxfp4, e.units, e.panels, draw);
        for (const uint32_t rows : kRowCounts)
            expect_products(kernels, packed, random_rows<Block>(rows, packed.columns(), draw),
                            rows);
    }
    // The ends of e8m0; 2^240 is where a sum of this many is still a float.
    for (const int32_t scale : {0, 1, 2, 240}) {
        const Packed packed = random_packed(Format::mxfp4, 2, 2, draw, scale, scale);
        expect_products(kernels, packed, random_rows<Block>(9, packed.columns(), draw), 9);
    }
}

TEST_P(MatrixKernels, Int16BlocksMultiplyWhatTheLayoutSays) {
    expect_blocks<Int16Block>(kernels());
}

TEST_P(MatrixKernels, Int8BlocksMultiplyWhatTheLayoutSays) {
    expect_blocks<Int8Block>(kernels());
}

// The longest sums of the largest codes, of either sign: nothing saturates or loses a bit.
template <typename Block>
void expect_no_saturation(const Kernels& kernels) {
    for (const uint32_t nibble : {7u, 15u}) {  // 6 and -6
        for (const int32_t code : {kLargest<Block>, -kLargest<Block>}) {
            Packed packed(Format::mxfp4, 1, 1);
            std::ranges::fill(packed.bytes, static_cast<std::byte>(nibble << 4 | nibble));
            std::fill_n(packed.bytes.begin(), 64, std::byte{127});
            Scattered<Block> rows(1, 4);
            for (uint32_t b = 0; b < 4; ++b) {
                for (uint32_t c = 0; c < kMxBlock; ++c) test::set_code(rows[0][b], c, code);
                rows[0][b].scale = 0.5f;
            }
            const Out out = multiply(kernels, packed, rows, 0, 1);
            for (uint32_t r = 0; r < kUnitRows; ++r)
                EXPECT_EQ(out.at(0, r),
                          (nibble == 7 ? 6.0f : -6.0f) * 128.0f * static_cast<float>(code));
        }
    }
}

TEST_P(MatrixKernels, TheLargestCodesDoNotSaturate) {
    expect_no_saturation<Int16Block>(kernels());
    expect_no_saturation<Int8Block>(kernels());
}

// ------------------------------------------------------------------------------- one weight

// The activation 1/4 in one column: 6 * 2^127 / 4 is a float.
void set_one(float* row, uint32_t columns, uint32_t c) {
    std::fill_n(row, columns, 0.0f);
    row[c] = 0.25f;
}
template <typename Block>
void set_one(Block* row, uint32_t columns, uint32_t c) {
    std::fill_n(row, columns / kMxBlock, Block{});
    test::set_code(row[c / kMxBlock], c % kMxBlock, 1);
    row[c / kMxBlock].scale = 0.125f;
}

// One activation that is not zero picks one weight: its code, its scale and its place, exactly.
template <typename T>
void expect_each_weight(const Kernels& kernels, const Packed& packed) {
    constexpr uint32_t kAtOnce = 8;
    Scattered<T> rows(kAtOnce, packed.columns() / kColumnsOf<T>);
    for (uint32_t begin = 0; begin < packed.columns(); begin += kAtOnce) {
        for (uint32_t i = 0; i < kAtOnce; ++i) set_one(rows[i], packed.columns(), begin + i);
        const Out out = multiply(kernels, packed, rows, 0, kAtOnce);
        for (uint32_t i = 0; i < kAtOnce; ++i) {
            for (uint32_t r = 0; r < packed.rows(); ++r)
                ASSERT_EQ(out.at(i, r), static_cast<float>(0.25 * value_of(packed, r, begin + i)))
                    << format_name(packed.format) << ": row " << r << ", column " << begin + i;
        }
    }
}

TEST_P(MatrixKernels, OneActivationPicksOneWeightExactly) {
    Draw draw(3);
    Packed fp8 = random_packed(Format::fp8, 2, 2, draw);
    std::vector<bool> codes(256);
    for (uint32_t i = 0; i < fp8.bytes.size(); ++i) {
        if (i % panel_bytes(Format::fp8) < panel_scale_bytes(Format::fp8)) continue;
        const uint32_t code = (i & 127) == 127 ? 0 : i & 255;
        fp8.bytes[i] = static_cast<std::byte>(code);
        codes[code] = true;
    }
    ASSERT_EQ(std::ranges::count(codes, true), 254);  // all but NaN
    expect_each_weight<float>(kernels(), fp8);
    expect_each_weight<float>(kernels(), random_packed(Format::bf16, 2, 2, draw));
    expect_each_weight<float>(kernels(), random_packed(Format::f32, 2, 2, draw));

    Packed mxfp4 = random_packed(Format::mxfp4, 2, 2, draw);
    std::vector<bool> scales(256);
    for (uint32_t row = 0; row < mxfp4.rows(); ++row) {
        for (uint32_t c = 0; c < mxfp4.columns(); c += kMxBlock) {
            const uint32_t scale = (row * 8 + c / kMxBlock) % 255;
            mxfp4.panel(row, c)[test::scale_offset(Format::mxfp4, row, c)] =
                static_cast<std::byte>(scale);
            scales[scale] = true;
        }
    }
    ASSERT_EQ(std::ranges::count(scales, true), 255);  // all but NaN
    expect_each_weight<Int16Block>(kernels(), mxfp4);
    expect_each_weight<Int8Block>(kernels(), mxfp4);
}

// ------------------------------------------------------------------------------- company

template <typename T>
void expect_same_bits_in_any_company(const Kernels& kernels, const Packed& packed, Draw& draw) {
    const auto rows = random_rows<T>(17, packed.columns(), draw);
    std::vector<Out> alone;
    for (uint32_t row = 0; row < 17; ++row)
        alone.push_back(multiply(kernels, packed, rows, row, 1));
    for (uint32_t first = 0; first < 17; ++first) {
        for (uint32_t count = 1; first + count <= 17; ++count) {
            const Out out = multiply(kernels, packed, rows, first, count);
            for (uint32_t i = 0; i < count; ++i) {
                for (uint32_t r = 0; r < packed.rows(); ++r)
                    ASSERT_EQ(bits_of(out.at(i, r)), bits_of(alone[first + i].at(0, r)))
                        << format_name(packed.format) << ": row " << first + i << " among "
                        << count;
            }
        }
    }
}

TEST_P(MatrixKernels, ARowHasTheSameBitsInAnyCompany) {
    Draw draw(4);
    for (const Format format : kPlainFormats)
        expect_same_bits_in_any_company<float>(kernels(), random_packed(format, 2, 3, draw), draw);
    const Packed mxfp4 = random_packed(Format::mxfp4, 2, 3, draw);
    expect_same_bits_in_any_company<Int16Block>(kernels(), mxfp4, draw);
    expect_same_bits_in_any_company<Int8Block>(kernels(), mxfp4, draw);
}

template <typename T>
void expect_same_bits_in_any_span(const Kernels& kernels, const Packed& packed, Draw& draw) {
    const auto rows = random_rows<T>(3, packed.columns(), draw);
    const Out whole = multiply(kernels, packed, rows, 0, 3);
    const auto unit_bytes = static_cast<ptrdiff_t>(packed.bytes.size() / packed.units);
    for (uint32_t unit = 0; unit < packed.units; ++unit) {
        Packed one(packed.format, 1, packed.panels);
        std::copy_n(packed.bytes.begin() + unit * unit_bytes, unit_bytes, one.bytes.begin());
        const Out out = multiply(kernels, one, rows, 0, 3);
        for (uint32_t row = 0; row < 3; ++row) {
            for (uint32_t r = 0; r < kUnitRows; ++r)
                ASSERT_EQ(bits_of(out.at(row, r)), bits_of(whole.at(row, unit * kUnitRows + r)));
        }
    }
}

TEST_P(MatrixKernels, AUnitHasTheSameBitsInAnySpan) {
    Draw draw(5);
    for (const Format format : kPlainFormats)
        expect_same_bits_in_any_span<float>(kernels(), random_packed(format, 5, 2, draw), draw);
    const Packed mxfp4 = random_packed(Format::mxfp4, 5, 2, draw);
    expect_same_bits_in_any_span<Int16Block>(kernels(), mxfp4, draw);
    expect_same_bits_in_any_span<Int8Block>(kernels(), mxfp4, draw);
}

// With one block there is one sum, of integers: every instruction set has the plain loops' bits.
template <typename Block>
void expect_bits_of_plain_loops(const Kernels& kernels) {
    Draw draw(8);
    const Packed packed = random_packed(Format::mxfp4, 1, 1, draw);
    auto rows = random_rows<Block>(8, packed.columns(), draw);
    for (uint32_t row = 0; row < 8; ++row) std::fill_n(rows[row] + 1, 3, Block{});
    EXPECT_EQ(multiply(kernels, packed, rows, 0, 8).values,
              multiply(*find_kernels(Isa::portable), packed, rows, 0, 8).values);
}

TEST_P(MatrixKernels, ABlockHasTheBitsOfThePlainLoops) {
    expect_bits_of_plain_loops<Int16Block>(kernels());
    expect_bits_of_plain_loops<Int8Block>(kernels());
}

// ------------------------------------------------------------------------------- read

TEST_P(MatrixKernels, ReadAddsUpEveryWordToTheLastByte) {
    Draw draw(9);
    for (const size_t bytes : {0, 1, 4, 63, 64, 65, 192, 255, 256, 257, 4096, 8192 + 511}) {
        std::vector<std::byte> memory(bytes);  // exactly: a byte more is the sanitizer's
        for (std::byte& byte : memory) byte = static_cast<std::byte>(draw.below(256));
        uint32_t sum = 0;
        for (size_t at = 0; at < bytes; at += 4) {
            uint32_t word = 0;
            std::memcpy(&word, &memory[at], std::min<size_t>(4, bytes - at));
            sum += word;
        }
        EXPECT_EQ(kernels().read(memory.data(), bytes), sum) << bytes;
    }
}

INSTANTIATE_TEST_SUITE_P(EachIsa, MatrixKernels, testing::ValuesIn(kIsas), test::isa_test_name);

}  // namespace
}  // namespace tessera
