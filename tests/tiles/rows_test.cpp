// The kernels over one row, of every instruction set, against the same formulas in long double. A
// result that is rounded to bf16 must be one of those that the exact value, a last bit of float up
// or down, rounds to.
#include <gtest/gtest.h>

#include "tiles/support.h"

namespace tessera {
namespace {

using test::Draw;

class RowKernels : public test::EachIsa {};

// The float nearest to `value` (1 + relative).
float nudged(long double value, double relative) {
    return static_cast<float>(value * (1 + static_cast<long double>(relative)));
}

// `found` lies between what the ends of an interval round to.
void expect_between(float found, float a, float b, const std::string& what) {
    EXPECT_LE(std::min(a, b), found) << what;
    EXPECT_GE(std::max(a, b), found) << what;
}

// ------------------------------------------------------------------------------- norm

TEST_P(RowKernels, NormRoundsWhereTheModelDoes) {
    Draw draw(1);
    constexpr float kGuard = 777;
    for (const uint32_t width : {1u, 2u, 15u, 16u, 17u, 31u, 160u, 384u, 1000u}) {
        for (const float size : {1.0f, 1e-4f, 300.0f}) {
            std::vector<float> x(width), gain(width);
            for (float& value : x) value = round_bf16(size * draw.unit());
            for (float& value : gain) value = 1 + 0.25f * draw.unit();
            const float epsilon = 1e-5f;
            std::vector<float> out(width + 3, kGuard);
            kernels().norm(x.data(), gain.data(), width, epsilon, out.data());

            long double squares = 0;
            for (const float value : x) squares += static_cast<long double>(value) * value;
            const long double rms = std::sqrt(squares / width + epsilon);
            for (uint32_t i = 0; i < width; ++i) {
                // A sum of `width` squares of floats, half of its relative error under the root.
                const double error = 0x1p-24 * (4 + width / 32.0);
                const float a = round_bf16(nudged(x[i] / rms, error)) * gain[i];
                const float b = round_bf16(nudged(x[i] / rms, -error)) * gain[i];
                expect_between(out[i], round_bf16(a), round_bf16(b),
                               "column " + std::to_string(i) + " of " + std::to_string(width));
            }
            for (uint32_t i = width; i < out.size(); ++i) EXPECT_EQ(out[i], kGuard);
        }
    }
}

TEST_P(RowKernels, NormOfZerosIsZero) {
    const std::vector<float> x(20), gain(20, 3.0f);
    std::vector<float> out(20, 9);
    kernels().norm(x.data(), gain.data(), 20, 1e-6f, out.data());
    for (const float value : out) EXPECT_EQ(value, 0.0f);
}

// ------------------------------------------------------------------------------- quantize

TEST(BlockOrder, IsTheOrderOfTheNibbles) {
    for (uint32_t c = 0; c < 8; ++c) EXPECT_EQ(kBlockOrder[c], test::place_of(c)) << c;
}

void quantize(const Kernels& kernels, const std::vector<float>& x, Int16Block* out) {
    kernels.quantize_int16(x.data(), static_cast<uint32_t>(x.size() / kMxBlock), out);
}
void quantize(const Kernels& kernels, const std::vector<float>& x, Int8Block* out) {
    kernels.quantize_int8(x.data(), static_cast<uint32_t>(x.size() / kMxBlock), out);
}

// Every value within half a step of its code, the largest on the last code; nothing behind.
template <typename Block>
void expect_half_a_step(const Kernels& kernels, const std::vector<float>& x) {
    constexpr int32_t kLargestCode = test::largest_code(Block{});
    const size_t blocks = x.size() / kMxBlock;
    Block guard{};
    guard.scale = 777;
    std::vector<Block> out(blocks + 1, guard);
    quantize(kernels, x, out.data());
    for (size_t b = 0; b < blocks; ++b) {
        double largest = 0;
        int32_t sum = 0;
        for (uint32_t c = 0; c < 32; ++c)
            largest = std::max(largest, std::abs(double{x[32 * b + c]}));
        const double step = largest / kLargestCode;
        EXPECT_NEAR(out[b].scale, step / 2, step * 0x1p-24 + 0x1p-149);
        // Two roundings of x / step before the one to an integer.
        const double near = step * (0.5 + kLargestCode * 0x1p-22);
        for (uint32_t c = 0; c < 32; ++c) {
            const double value = x[32 * b + c];
            const int32_t code = test::code_of(out[b], c);
            sum += code;
            EXPECT_LE(std::abs(code), kLargestCode);
            EXPECT_LE(std::abs(value - code * step), near) << "column " << c;
            if (std::abs(value) == largest) {
                EXPECT_EQ(code, value > 0 ? kLargestCode : -kLargestCode) << "column " << c;
            }
        }
        EXPECT_EQ(out[b].balance, -12 * sum);
    }
    EXPECT_EQ(out[blocks].scale, 777);
}

TEST_P(RowKernels, QuantizeKeepsEveryValueWithinHalfAStep) {
    Draw draw(2);
    std::vector<float> random(32), rough(32), tiny(32), one(32), falling(32);
    for (uint32_t i = 0; i < 32; ++i) {
        random[i] = draw.unit();
        rough[i] = draw.rough();
        tiny[i] = 1e-30f * draw.unit();
        falling[i] = std::ldexp(i % 2 == 0 ? 1.0f : -1.0f, -static_cast<int>(i));
    }
    one[17] = -3.0f;
    for (const auto& [what, values] : std::vector<std::pair<const char*, std::vector<float>>>{
             {"random", random},
             {"of bf16", rough},
             {"tiny", tiny},
             {"one that is not zero", one},
             {"each half of the one before", falling},
             {"all negative", std::vector<float>(32, -0.7f)},
             {"large", std::vector<float>(32, 3e38f)}}) {
        SCOPED_TRACE(what);
        std::vector<float> x;
        for (uint32_t i = 0; i < 3 * 32; ++i)
            x.push_back(values[i % 32] / static_cast<float>(1 << i / 32));
        expect_half_a_step<Int16Block>(kernels(), x);
        expect_half_a_step<Int8Block>(kernels(), x);
    }
}

template <typename Block>
void expect_zeros(const Kernels& kernels) {
    const std::vector<float> x(32);
    Block block{};
    for (uint32_t c = 0; c < 32; ++c) test::set_code(block, c, 5);
    block.scale = 4;
    quantize(kernels, x, &block);
    for (uint32_t c = 0; c < 32; ++c) EXPECT_EQ(test::code_of(block, c), 0);
    EXPECT_EQ(block.scale, 0.0f);
    EXPECT_EQ(block.balance, 0);
}

TEST_P(RowKernels, QuantizeOfZerosIsZero) {
    expect_zeros<Int16Block>(kernels());
    expect_zeros<Int8Block>(kernels());
}

// Through the multiplication: a row of blocks costs at most half a step of each activation.
template <typename Block, typename Multiply>
void expect_products_near(const Kernels& kernels, Multiply multiply) {
    Draw draw(3);
    const test::Packed packed = test::random_packed(Format::mxfp4, 2, 2, draw);
    std::vector<float> x(packed.columns());
    for (float& value : x) value = draw.rough();
    std::vector<Block> blocks(packed.columns() / kMxBlock);
    quantize(kernels, x, blocks.data());
    std::vector<float> out(packed.rows());
    const Block* const row = blocks.data();
    multiply(packed.bytes.data(), packed.units, packed.panels, Rows<Block>{&row, 1}, out.data(),
             packed.rows());
    for (uint32_t r = 0; r < packed.rows(); ++r) {
        double sum = 0, lost = 0;
        for (uint32_t c = 0; c < packed.columns(); ++c) {
            sum += test::value_of(packed, r, c) * x[c];
            lost += std::abs(test::value_of(packed, r, c)) * blocks[c / kMxBlock].scale;
        }
        EXPECT_NEAR(out[r], sum, lost * 1.02 + std::abs(sum) * 0x1p-21) << r;
    }
}

TEST_P(RowKernels, QuantizedRowsMultiplyAsTheOriginalsDo) {
    expect_products_near<Int16Block>(kernels(), kernels().multiply_int16);
    expect_products_near<Int8Block>(kernels(), kernels().multiply_int8);
}

// ------------------------------------------------------------------------------- gate

long double silu(long double x) {
    return x / (1 + std::exp(-x));
}

TEST_P(RowKernels, GateIsSiluTimesUp) {
    Draw draw(4);
    std::vector<float> gate, up;
    for (int i = -9000; i <= 9000; ++i) gate.push_back(static_cast<float>(i) * 0.01f);
    for (const float x : {0.0f, -0.0f, 1e-20f, -1e-20f, 1e-38f, 100.0f, -100.0f, 1000.0f, -1000.0f,
                          1e30f, -1e30f, 3e38f, -3e38f})
        gate.push_back(x);
    for (size_t i = 0; i < gate.size(); ++i) up.push_back(draw.unit());
    const auto count = static_cast<uint32_t>(gate.size());
    std::vector<float> out(count + 3, 777);
    kernels().gate(gate.data(), up.data(), count, out.data());
    for (uint32_t i = 0; i < count; ++i) {
        const long double g = round_bf16(gate[i]), u = round_bf16(up[i]);
        const long double exact = silu(g) * u;
        // e^x is 0 below -87, where it is less than the smallest normal float.
        const long double lost = g < -87 ? std::abs(exact) : 0;
        const auto a = round_bf16(nudged(exact - lost, 6e-7));
        const auto b = round_bf16(nudged(exact + lost, 6e-7));
        const auto c = round_bf16(nudged(exact - lost, -6e-7));
        const auto d = round_bf16(nudged(exact + lost, -6e-7));
        expect_between(out[i], std::min({a, b, c, d}), std::max({a, b, c, d}),
                       "gate " + std::to_string(gate[i]) + ", up " + std::to_string(up[i]));
    }
    for (uint32_t i = count; i < out.size(); ++i) EXPECT_EQ(out[i], 777);
}

TEST_P(RowKernels, GateRoundsItsInputsToBf16) {
    // 1 + 2^-9 rounds to 1, 1 + 3 * 2^-9 to 1 + 2^-7.
    const std::vector<float> x = {1 + 0x1p-9f, 1 + 3 * 0x1p-9f}, one = {1, 1 + 0x1p-7f};
    std::vector<float> rough(2), fine(2);
    kernels().gate(x.data(), one.data(), 2, rough.data());
    kernels().gate(one.data(), one.data(), 2, fine.data());
    for (int i = 0; i < 2; ++i) EXPECT_EQ(rough[i], fine[i]);
    kernels().gate(one.data(), x.data(), 2, rough.data());
    for (int i = 0; i < 2; ++i) EXPECT_EQ(rough[i], fine[i]);
}

// ------------------------------------------------------------------------------- sums

TEST_P(RowKernels, AddWeightedAddsEveryElementOnce) {
    Draw draw(5);
    for (const uint32_t count : {1u, 15u, 16u, 33u, 128u}) {
        std::vector<float> x(count), sum(count + 2, 0.5f);
        for (float& value : x) value = draw.unit();
        const float weight = 0.37f;
        kernels().add_weighted(x.data(), weight, count, sum.data());
        for (uint32_t i = 0; i < count; ++i)
            EXPECT_NEAR(sum[i], 0.5 + double{weight} * x[i], 0x1p-23) << i;
        EXPECT_EQ(sum[count], 0.5f);
    }
}

// A multiplication by one rounds nothing, so that an exchange adds ranks' partials as they are.
TEST_P(RowKernels, AddWeightedByOneIsAddition) {
    Draw draw(6);
    std::vector<float> x(40), sum(40);
    for (float& value : x) value = draw.unit();
    for (float& value : sum) value = 1000 * draw.unit();
    const std::vector<float> before = sum;
    kernels().add_weighted(x.data(), 1.0f, 40, sum.data());
    for (uint32_t i = 0; i < 40; ++i) EXPECT_EQ(sum[i], before[i] + x[i]);
}

TEST_P(RowKernels, AddResidualRoundsTheUpdateAndTheSum) {
    Draw draw(7);
    for (const uint32_t count : {1u, 16u, 17u, 100u}) {
        std::vector<float> update(count), x(count + 2, 0.25f);
        for (float& value : update) value = draw.unit();
        for (uint32_t i = 0; i < count; ++i) x[i] = round_bf16(4 * draw.unit());
        const std::vector<float> before = x;
        kernels().add_residual(update.data(), count, x.data());
        for (uint32_t i = 0; i < count; ++i)
            EXPECT_EQ(x[i], round_bf16(before[i] + round_bf16(update[i]))) << i;
        EXPECT_EQ(x[count], 0.25f);
    }
}

TEST_P(RowKernels, ExpSumIsTheSoftmaxDenominator) {
    Draw draw(9);
    for (const uint32_t count : {1u, 16u, 31u, 203u}) {
        for (const float scale : {0.5f, 1.0f, 3.0f}) {
            std::vector<float> x(count);
            for (float& value : x) value = 20 * draw.unit();
            const float top = *std::ranges::max_element(x);
            double expected = 0, capped = 0;
            for (const float value : x) {
                expected += std::exp(double{scale} * (value - top));
                capped += std::exp(std::min(0.0, double{scale} * (value - x[0])));
            }
            EXPECT_NEAR(kernels().exp_sum(x.data(), count, scale, top), expected, 1e-5 * expected);
            // More likely ones count as 1.
            EXPECT_NEAR(kernels().exp_sum(x.data(), count, scale, x[0]), capped, 1e-5 * capped);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(EachIsa, RowKernels, testing::ValuesIn(kIsas), test::isa_test_name);

}  // namespace
}  // namespace tessera
