// A row never knows its neighbours: one call or many, the numbers are the same bit for bit.
#include <fstream>

#include <gtest/gtest.h>

#include "reference/reference.h"

#include "support/seeded.h"

namespace tessera {
namespace {

class Rows : public testing::TestWithParam<Rounding> {};

TEST_P(Rows, OneCallOrManyGiveTheSameBits) {
    std::ifstream file(std::string(TESSERA_VECTORS) + "/reference/all_features.json");
    const Shape shape = parse_shape(Json::parse(file)["config"], "all_features");
    const auto made = test::seeded_checkpoint(shape, 9);
    const Weights weights = bind(made.checkpoint, shape);
    const Reference reference(weights, GetParam());

    std::vector<uint32_t> tokens;
    for (uint64_t i = 0; i < 30; ++i) {
        tokens.push_back(static_cast<uint32_t>(test::splitmix64(3, i) % shape.vocab));
    }
    Reference::Cache together, apart;
    const std::vector<float> whole = reference.forward(together, tokens);
    std::vector<float> pieces;
    for (size_t at = 0, size = 1; at < tokens.size(); at += size, size = size % 4 + 1) {
        size = std::min(size, tokens.size() - at);
        const auto part = reference.forward(apart, std::span(tokens).subspan(at, size));
        pieces.insert(pieces.end(), part.begin(), part.end());
    }
    EXPECT_EQ(whole, pieces);
    EXPECT_EQ(together.keys, apart.keys);
    EXPECT_EQ(together.values, apart.values);
}

INSTANTIATE_TEST_SUITE_P(Both, Rows, testing::Values(Rounding::none, Rounding::bf16));

}  // namespace
}  // namespace tessera
