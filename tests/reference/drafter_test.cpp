// The drafter's slow twin against PyTorch (tests/vectors/drafter.py): the residual of the whole
// block after every layer, and the logits; then what it promises whoever walks with it.
#include "reference/drafter.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <string>

#include <gtest/gtest.h>

#include "base/json.h"

#include "support/seeded.h"
#include "support/toys.h"

namespace tessera {
namespace {

Json read_vector(const std::string& name) {
    std::ifstream file(std::string(TESSERA_VECTORS) + "/drafter/" + name + ".json");
    return Json::parse(file);
}

// ‖a - b‖ / ‖b‖
double relative_error(std::span<const float> a, std::span<const float> b) {
    EXPECT_EQ(a.size(), b.size());
    double difference = 0, norm = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        difference += std::pow(double{a[i]} - b[i], 2);
        norm += std::pow(double{b[i]}, 2);
    }
    return std::sqrt(difference / norm);
}

// Seeded weights of a target and of its drafter.
struct Pair {
    Pair(const Shape& target_shape, const DrafterShape& shape, uint64_t seed)
        : target_made(test::seeded_checkpoint(target_shape, seed)),
          drafter_made(test::seeded_checkpoint(shape, seed)),
          target(bind(target_made.checkpoint, target_shape)),
          drafter(bind_drafter(drafter_made.checkpoint, shape, test::seeded_mask(shape, seed))) {}

    test::SeededCheckpoint target_made, drafter_made;
    Weights target;
    DrafterWeights drafter;
};

// ------------------------------------------------------------------------------- the oracle

class DrafterOracle : public testing::TestWithParam<std::string> {
  protected:
    DrafterOracle()
        : vector_(read_vector(GetParam())),
          pair_(target_shape(), parse_drafter_shape(vector_["drafter"], target_shape(), GetParam()),
                vector_["seed"]),
          context_(vector_["context"]),
          taps_(test::seeded_rows("taps", context_ * pair_.drafter.fc.columns, vector_["seed"])) {}

    Shape target_shape() const { return parse_shape(vector_["target"], GetParam()); }
    uint32_t anchor() const { return vector_["anchor"]; }

    Json vector_;
    Pair pair_;
    uint64_t context_;
    std::vector<float> taps_;
};

TEST_P(DrafterOracle, LogitsAndEveryLayerAgree) {
    const ReferenceDrafter drafter(pair_.drafter, pair_.target, Rounding::none);
    ReferenceDrafter::Cache cache;
    drafter.extend(cache, taps_);
    EXPECT_EQ(cache.length, context_);
    double worst = 0;
    uint32_t layers = 0;
    const std::vector<float> hidden =
        drafter.propose(cache, anchor(), [&](uint32_t layer, auto residual) {
            EXPECT_EQ(layer, layers++);
            const auto expected = vector_["residuals"][layer].get<std::vector<float>>();
            const double error = relative_error(residual, expected);
            EXPECT_LE(error, 1e-5) << "layer " << layer;
            worst = std::max(worst, error);
        });
    EXPECT_EQ(layers, vector_["residuals"].size());
    const auto expected = vector_["logits"].get<std::vector<float>>();
    const double error = relative_error(drafter.logits(hidden), expected);
    EXPECT_LE(error, 1e-5);
    std::printf("%s: |difference| / |residual| <= %.2e, / |logits| = %.2e\n", GetParam().c_str(),
                worst, error);
}

TEST_P(DrafterOracle, Bf16StaysNear) {
    const ReferenceDrafter drafter(pair_.drafter, pair_.target, Rounding::bf16);
    ReferenceDrafter::Cache cache;
    drafter.extend(cache, taps_);
    const std::vector<float> logits = drafter.logits(drafter.propose(cache, anchor()));
    const double error = relative_error(logits, vector_["logits"].get<std::vector<float>>());
    EXPECT_LE(error, 3e-2);
    EXPECT_GE(error, 1e-4) << "nothing was rounded";
    std::printf("%s: bf16, |difference| / |logits| = %.2e\n", GetParam().c_str(), error);
}

INSTANTIATE_TEST_SUITE_P(PyTorch, DrafterOracle,
                         testing::Values("first_token", "no_window_no_sink", "one_kv_head",
                                         "published_form", "wide_heads",
                                         "window_beyond_the_context", "window_within_the_block"),
                         [](const auto& test) { return test.param; });

struct Mistake {
    const char* what;
    std::function<void(Pair&)> make;
};

// What ports of the published drafter got wrong and paid for in acceptance: the vector sees each.
TEST(DrafterVector, SeesTheMistakesThatPortsMade) {
    const Json vector = read_vector("published_form");
    const Shape target = parse_shape(vector["target"], "target");
    const DrafterShape shape = parse_drafter_shape(vector["drafter"], target, "drafter");
    const uint64_t seed = vector["seed"], context = vector["context"];
    const auto expected = vector["logits"].get<std::vector<float>>();
    for (const Mistake& mistake : std::vector<Mistake>{
             {"all dims rotate", [](Pair& p) { p.drafter.shape.attention.rotary_dims = 32; }},
             {"the model's theta", [](Pair& p) { p.drafter.shape.attention.rope_theta = 5e6f; }},
             {"no value scale", [](Pair& p) { p.drafter.shape.value_scale = 1; }},
             {"no sinks",
              [](Pair& p) {
                  for (DrafterLayerWeights& layer : p.drafter.layers) layer.sink.clear();
              }},
             {"no window", [](Pair& p) { p.drafter.shape.attention.window = 0; }},
             {"one key too many", [](Pair& p) { ++p.drafter.shape.attention.window; }},
             {"one key too few", [](Pair& p) { --p.drafter.shape.attention.window; }},
             {"the target's own row for the mask",
              [](Pair& p) {
                  dequantize_row(p.target.embedding, p.drafter.shape.mask_token,
                                 p.drafter.mask_embedding);
              }},
             {"a shorter block", [](Pair& p) { --p.drafter.shape.block; }}}) {
        Pair pair(target, shape, seed);
        mistake.make(pair);
        const ReferenceDrafter drafter(pair.drafter, pair.target, Rounding::none);
        ReferenceDrafter::Cache cache;
        drafter.extend(cache, test::seeded_rows("taps", context * pair.drafter.fc.columns, seed));
        const std::vector<float> logits = drafter.logits(drafter.propose(cache, vector["anchor"]));
        EXPECT_GE(relative_error(logits, std::span(expected).first(logits.size())), 1e-3)
            << mistake.what;
    }
}

// ------------------------------------------------------------------------------- what it promises

constexpr uint64_t kSeed = 21;

class Drafting : public testing::TestWithParam<Rounding> {
  protected:
    Drafting()
        : pair_(test::toy_shape(), test::toy_drafter_shape(), kSeed),
          drafter_(pair_.drafter, pair_.target, GetParam()) {}

    std::vector<float> taps(uint32_t rows) const {
        return test::seeded_rows("taps", uint64_t{rows} * pair_.drafter.fc.columns, kSeed);
    }
    std::vector<float> propose(const std::vector<float>& taps, uint32_t anchor = 5) const {
        ReferenceDrafter::Cache cache;
        drafter_.extend(cache, taps);
        return drafter_.propose(cache, anchor);
    }
    std::span<const float> slot(const std::vector<float>& hidden, uint32_t slot) const {
        const size_t width = drafter_.shape().hidden;
        return std::span(hidden).subspan((slot - 1) * width, width);
    }

    Pair pair_;
    ReferenceDrafter drafter_;
};

TEST_P(Drafting, OneCallOrManyGiveTheSameBits) {
    const uint32_t rows = 30;
    const std::vector<float> all = taps(rows);
    const size_t width = pair_.drafter.fc.columns;
    ReferenceDrafter::Cache together, apart;
    drafter_.extend(together, all);
    for (uint32_t at = 0, size = 1; at < rows; at += size, size = size % 4 + 1) {
        size = std::min(size, rows - at);
        drafter_.extend(apart, std::span(all).subspan(at * width, size * width));
        drafter_.propose(apart, at);  // leaves nothing behind
    }
    EXPECT_EQ(together.length, apart.length);
    EXPECT_EQ(together.keys, apart.keys);
    EXPECT_EQ(together.values, apart.values);
    EXPECT_EQ(drafter_.propose(together, 5), drafter_.propose(apart, 5));
}

// Context key t is seen at position p + j iff t + window > p + j. With one layer, what a slot does
// not see does not reach it over its neighbours' keys either.
TEST_P(Drafting, TheWindowEndsWhereItIsSaidTo) {
    const uint32_t p = 30, window = 12, block = 8;
    Pair one(test::toy_shape(), test::toy_drafter_shape({{"num_hidden_layers", 1}}), kSeed);
    const ReferenceDrafter drafter(one.drafter, one.target, GetParam());
    ASSERT_EQ(drafter.shape().attention.window, window);
    ASSERT_EQ(drafter.shape().block, block);
    ReferenceDrafter::Cache cache;
    drafter.extend(cache, taps(p));
    const std::vector<float> before = drafter.propose(cache, 5);
    const size_t width = drafter.shape().attention.v_rows();
    for (uint32_t t = 0; t < p; ++t) {
        ReferenceDrafter::Cache other = cache;
        for (size_t d = 0; d < width; ++d) other.values[0][t * width + d] += 4.0f;
        const std::vector<float> after = drafter.propose(other, 5);
        for (uint32_t j = 1; j < block; ++j) {
            const bool same = std::ranges::equal(slot(before, j), slot(after, j));
            EXPECT_EQ(same, t + window <= p + j) << "key " << t << ", slot " << j;
        }
    }
}

TEST_P(Drafting, EverySlotHearsTheAnchorAndSpeaksOfItsOwnPosition) {
    const std::vector<float> some = taps(10);
    const std::vector<float> a = propose(some, 5), b = propose(some, 6);
    EXPECT_EQ(a.size(), 7u * drafter_.shape().hidden);
    for (uint32_t j = 1; j < 8; ++j) {
        EXPECT_FALSE(std::ranges::equal(slot(a, j), slot(b, j))) << j;
        // All of them start as the same mask: only their positions tell them apart.
        if (j > 1) {
            EXPECT_FALSE(std::ranges::equal(slot(a, j), slot(a, 1))) << j;
        }
    }
}

TEST_P(Drafting, WhatIsStoredIsBf16) {
    const auto is_bf16 = [](std::span<const float> values) {
        return std::ranges::all_of(values, [](float v) { return v == round_bf16(v); });
    };
    const bool rounds = GetParam() == Rounding::bf16;
    ReferenceDrafter::Cache cache;
    drafter_.extend(cache, taps(10));
    for (const auto& keys : cache.keys) EXPECT_EQ(is_bf16(keys), rounds);
    for (const auto& values : cache.values) EXPECT_EQ(is_bf16(values), rounds);
    const std::vector<float> hidden = drafter_.propose(
        cache, 5, [&](uint32_t, auto residual) { EXPECT_EQ(is_bf16(residual), rounds); });
    EXPECT_EQ(is_bf16(hidden), rounds);
    EXPECT_EQ(drafter_.logits(hidden).size(), 7u * pair_.target.shape.vocab);
}

INSTANTIATE_TEST_SUITE_P(Both, Drafting, testing::Values(Rounding::none, Rounding::bf16));

}  // namespace
}  // namespace tessera
