// MXFP4 rounding against an oracle of exact fractions (tests/vectors/quantize.py), and against its
// own definition where a search over everything is quick.
#include "weights/quantize.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/json.h"

#include "support/seeded.h"

namespace tessera {
namespace {

constexpr size_t kCodeBytes = kMxBlock / 2;

struct Rounded {
    bool finite;
    uint8_t scale;
    std::string codes;  // a hexadecimal digit an element

    bool operator==(const Rounded&) const = default;
};

std::string digits(const std::byte* codes) {
    std::string text;
    for (size_t i = 0; i < kCodeBytes; ++i) {
        const auto pair = std::to_integer<unsigned>(codes[i]);
        text += "0123456789abcdef"[pair & 15];
        text += "0123456789abcdef"[pair >> 4];
    }
    return text;
}

// What every instruction set of this processor says alike.
Rounded as_bits(const std::vector<uint16_t>& bits) {
    std::optional<Rounded> found;
    for (const Isa isa : kIsas) {
        const Kernels* const kernels = find_kernels(isa);
        if (kernels == nullptr) continue;
        std::byte codes[kCodeBytes] = {}, scale[1] = {};
        const bool finite =
            quantize_nearest(std::as_bytes(std::span(bits)), codes, scale, *kernels);
        Rounded one{finite, std::to_integer<uint8_t>(scale[0]), digits(codes)};
        if (found && finite) {
            EXPECT_EQ(one, *found) << isa_name(isa);
        }
        found = std::move(one);
    }
    return *found;
}

Rounded as_floats(const std::vector<uint16_t>& bits, BlockRounding rounding,
                  const std::vector<float>& weights = {}) {
    std::vector<float> values;
    for (const uint16_t one : bits) values.push_back(to_float({one}));
    std::byte codes[kCodeBytes], scale[1];
    const bool finite = quantize_row(values, rounding, weights, codes, scale);
    return {finite, std::to_integer<uint8_t>(scale[0]), digits(codes)};
}

Json oracle() {
    std::ifstream file(TESSERA_VECTORS "/quantize.json");
    return Json::parse(file);
}

uint64_t fnv1a(uint64_t state, uint8_t byte) {
    return (state ^ byte) * 0x100000001b3u;
}

TEST(Quantize, EveryBf16InABlockIsTheOracles) {
    const Json vector = oracle();
    ASSERT_EQ(vector["sweeps"].size(), 3u);
    for (const Json& sweep : vector["sweeps"]) {
        const auto position = sweep["position"].get<size_t>();
        auto bits = sweep["others"].get<std::vector<uint16_t>>();
        for (uint32_t high = 0; high < 256; ++high) {
            uint64_t hash = 0xcbf29ce484222325u, float_hash = hash;
            for (uint32_t low = 0; low < 256; ++low) {
                bits[position] = static_cast<uint16_t>(high << 8 | low);
                for (const bool fast : {true, false}) {
                    Rounded r = fast ? as_bits(bits) : as_floats(bits, BlockRounding::nearest);
                    ASSERT_EQ(r.finite, (bits[position] & 0x7f80) != 0x7f80);
                    const auto code =
                        static_cast<uint8_t>(std::stoi(r.codes.substr(position, 1), nullptr, 16));
                    uint64_t& sum = fast ? hash : float_hash;
                    sum = fnv1a(fnv1a(sum, r.finite ? r.scale : 255), r.finite ? code : 15);
                }
            }
            const auto expected = sweep["hashes"][high].get<std::string>();
            ASSERT_EQ(fmt::format("{:016x}", hash), expected) << position << " " << high;
            ASSERT_EQ(fmt::format("{:016x}", float_hash), expected) << position << " " << high;
        }
    }
}

TEST(Quantize, WholeBlocksAreTheOraclesInEveryRounding) {
    const Json vector = oracle();
    ASSERT_GE(vector["blocks"].size(), 70u);
    size_t other_scales = 0;
    for (const Json& block : vector["blocks"]) {
        const auto bits = block["bits"].get<std::vector<uint16_t>>();
        const auto weights = block["weights"].get<std::vector<float>>();
        const auto expect = [&](const Rounded& found, const char* rounding) {
            ASSERT_TRUE(found.finite);
            EXPECT_EQ(found.scale, block[rounding][0].get<unsigned>()) << rounding << block.dump();
            EXPECT_EQ(found.codes, block[rounding][1].get<std::string>()) << rounding;
        };
        expect(as_bits(bits), "nearest");
        expect(as_floats(bits, BlockRounding::nearest), "nearest");
        expect(as_floats(bits, BlockRounding::mse), "mse");
        expect(as_floats(bits, BlockRounding::mse, weights), "weighted");
        other_scales += block["mse"][0] != block["nearest"][0];
    }
    EXPECT_GT(other_scales, 10u);  // or mse was not tested
}

// Table 5 and section 5.4.1 of the OCP Microscaling Formats specification 1.0: the ends of e2m1's
// and of e8m0's ranges. With 4 in the block the scale is 2^(2 - 2).
TEST(Quantize, TheSpecificationsOwnNumbers) {
    struct Row {
        const char* what;
        float value;
        char code;
    };
    for (const Row& row :
         {Row{"zero", 0, '0'}, Row{"least subnormal", 0.5f, '1'}, Row{"least normal", 1, '2'},
          Row{"largest", 6, '7'}, Row{"-largest", -6, 'f'}, Row{"-least subnormal", -0.5f, '9'},
          Row{"half way to the least", 0.25f, '0'}, Row{"saturates", 7.9f, '7'}}) {
        std::vector<uint16_t> bits(kMxBlock, to_bf16(4).bits);
        bits[7] = to_bf16(row.value).bits;
        const Rounded found = as_bits(bits);
        EXPECT_EQ(found.scale, 127) << row.what;
        EXPECT_EQ(found.codes[7], row.code) << row.what;
        EXPECT_EQ(found.codes[6], '6') << row.what;
    }
    std::vector<uint16_t> bits(kMxBlock, 0);
    bits[0] = to_bf16(0x1p127f).bits;
    EXPECT_EQ(as_bits(bits).scale, 127 + 125);
    bits[0] = to_bf16(0x1p-127f).bits;  // below what the least scale times 4 is
    EXPECT_EQ(as_bits(bits).scale, 0);
    EXPECT_EQ(as_bits(bits).codes[0], '2');
}

TEST(Quantize, WhatMxfp4CannotSayIsRefusedWhereverItStands) {
    for (const uint16_t bad : std::vector<uint16_t>{0x7f80, 0xff80, 0x7fc0, 0xffff, 0x7f81}) {
        for (size_t at = 0; at < kMxBlock; ++at) {
            std::vector<uint16_t> bits(kMxBlock, 0x3f80);
            bits[at] = bad;
            EXPECT_FALSE(as_bits(bits).finite) << bad;
            EXPECT_FALSE(as_floats(bits, BlockRounding::nearest).finite);
            EXPECT_FALSE(as_floats(bits, BlockRounding::mse).finite);
        }
    }
}

// Error of a scale in exact powers of two, the element's code found by trying all eight.
double error_of(const std::vector<float>& values, int byte, const std::vector<float>& weights) {
    double sum = 0;
    for (size_t i = 0; i < values.size(); ++i) {
        double least = std::numeric_limits<double>::max();
        for (uint32_t code = 0; code < 8; ++code)
            least = std::min(least, std::abs(std::abs(double{values[i]}) -
                                             std::ldexp(double{kE2m1[code]}, byte - 127)));
        sum += least * least * (weights.empty() ? 1 : double{weights[i]});
    }
    return sum;
}

TEST(Quantize, NoScaleOfAllHasALesserErrorThanMse) {
    for (uint64_t seed = 0; seed < 300; ++seed) {
        std::vector<float> values;
        for (uint32_t i = 0; i < kMxBlock; ++i) {
            const double u = test::seeded_unit("mse", i, seed);
            values.push_back(static_cast<float>(u * u * u * std::pow(4, seed % 5)));
        }
        std::byte codes[kCodeBytes], scale[1];
        ASSERT_TRUE(quantize_row(values, BlockRounding::mse, {}, codes, scale));
        const double found = error_of(values, std::to_integer<int>(scale[0]), {});
        for (int byte = 100; byte < 150; ++byte)
            ASSERT_LE(found, error_of(values, byte, {}) * (1 + 1e-12)) << seed << " " << byte;
    }
}

TEST(Quantize, ColumnsWithoutWeightMayLose) {
    std::vector<float> values(kMxBlock, 0.3f), weights(kMxBlock, 1.0f);
    values[0] = 1.9f;  // makes nearest's scale too coarse for the rest
    weights[0] = 0;
    std::byte codes[kCodeBytes], plain[1], weighted[1];
    ASSERT_TRUE(quantize_row(values, BlockRounding::mse, {}, codes, plain));
    ASSERT_TRUE(quantize_row(values, BlockRounding::mse, weights, codes, weighted));
    EXPECT_LT(std::to_integer<int>(weighted[0]), std::to_integer<int>(plain[0]));
}

// Rows are many blocks, at any address, and a block does not know its neighbours.
TEST(Quantize, RowsAreTheirBlocks) {
    constexpr size_t kBlocks = 9;
    std::vector<uint16_t> row;
    for (size_t i = 0; i < kBlocks * kMxBlock; ++i)
        row.push_back(to_bf16(static_cast<float>(test::seeded_unit("row", i, 3)) *
                              std::exp2(static_cast<float>(i / kMxBlock * 30) - 125))
                          .bits);
    std::vector<std::byte> raw(1 + 2 * row.size());
    std::memcpy(raw.data() + 1, row.data(), 2 * row.size());  // odd
    std::vector<std::byte> codes(row.size() / 2), scales(kBlocks);
    ASSERT_TRUE(quantize_nearest(std::span(raw).subspan(1), codes, scales));
    for (size_t block = 0; block < kBlocks; ++block) {
        const auto begin = row.begin() + static_cast<ptrdiff_t>(block * kMxBlock);
        const Rounded alone = as_bits({begin, begin + kMxBlock});
        EXPECT_EQ(std::to_integer<unsigned>(scales[block]), alone.scale);
        EXPECT_EQ(digits(codes.data() + block * kCodeBytes), alone.codes);
    }
}

}  // namespace
}  // namespace tessera
