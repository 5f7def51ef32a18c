// The reference against transformers' MiMo-V2-Flash (tests/vectors/reference.py): logits of every
// position, the residual after every layer, and 64 greedy tokens.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "base/json.h"
#include "reference/reference.h"

#include "judge/score.h"
#include "support/seeded.h"

namespace tessera {
namespace {

Json read_vector(const std::filesystem::path& path) {
    std::ifstream file(path);
    return Json::parse(file);
}

// ‖a - b‖ / ‖b‖
double relative_error(std::span<const float> a, std::span<const float> b) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        difference += std::pow(double{a[i]} - b[i], 2);
        norm += std::pow(double{b[i]}, 2);
    }
    return std::sqrt(difference / norm);
}

uint32_t best(std::span<const float> logits) {
    return static_cast<uint32_t>(std::ranges::max_element(logits) - logits.begin());
}

class Oracle : public testing::TestWithParam<std::string> {
  protected:
    Oracle()
        : vector_(read_vector(std::string(TESSERA_VECTORS) + "/reference/" + GetParam() + ".json")),
          made_(
              test::seeded_checkpoint(parse_shape(vector_["config"], GetParam()), vector_["seed"])),
          weights_(bind(made_.checkpoint, parse_shape(vector_["config"], GetParam()))),
          prompt_(vector_["prompt"].get<std::vector<uint32_t>>()) {}

    Json vector_;
    test::SeededCheckpoint made_;
    Weights weights_;
    std::vector<uint32_t> prompt_;
};

TEST_P(Oracle, LogitsAndEveryLayerAgree) {
    const Reference reference(weights_, Rounding::none);
    Reference::Cache cache;
    const std::vector<float> hidden =
        reference.forward(cache, prompt_, [&](uint32_t layer, auto stage, auto residual) {
            if (stage != Reference::Stage::residual) return;
            const auto expected = vector_["residuals"][layer].get<std::vector<float>>();
            EXPECT_LE(relative_error(residual.last(expected.size()), expected), 1e-5)
                << "layer " << layer;
        });
    const auto expected = vector_["logits"].get<std::vector<float>>();
    const double error = relative_error(reference.logits(hidden), expected);
    EXPECT_LE(error, 1e-5);
    RecordProperty("relative_error", std::to_string(error));
    std::printf("%s: |difference| / |logits| = %.2e\n", GetParam().c_str(), error);
}

// Perplexity of the prompt as eval sums it, against the definition on transformers' logits.
TEST_P(Oracle, PerplexityIsEqual) {
    const Reference reference(weights_, Rounding::none);
    Reference::Cache cache;
    const std::vector<float> logits = reference.logits(reference.forward(cache, prompt_));
    const auto expected = vector_["logits"].get<std::vector<double>>();
    const size_t vocab = reference.shape().vocab;
    // Vectors hold the logits of the last positions.
    const size_t rows = expected.size() / vocab, first = prompt_.size() - rows;
    ASSERT_GE(rows, 2u);
    Sums sums;
    double nats = 0;
    for (size_t row = 0; row + 1 < rows; ++row) {
        const uint32_t next = prompt_[first + row + 1];
        sums += {1, 1, 0, surprise(std::span(logits).subspan((first + row) * vocab, vocab), next),
                 0, 0};
        double sum = 0;
        for (size_t i = 0; i < vocab; ++i) sum += std::exp(expected[row * vocab + i]);
        nats -= std::log(std::exp(expected[row * vocab + next]) / sum);
    }
    const double perplexity = std::exp(nats / static_cast<double>(rows - 1));
    EXPECT_NEAR(sums.perplexity() / perplexity, 1, 1e-5);
}

TEST_P(Oracle, GreedyTokensAreEqual) {
    const Reference reference(weights_, Rounding::none);
    Reference::Cache cache;
    std::vector<float> hidden = reference.forward(cache, prompt_);
    std::vector<uint32_t> text;
    const auto expected = vector_["greedy"].get<std::vector<uint32_t>>();
    while (text.size() < expected.size()) {
        const auto last = std::span(hidden).last(reference.shape().hidden);
        text.push_back(best(reference.logits(last)));
        hidden = reference.forward(cache, std::span(text).last(1));
    }
    EXPECT_EQ(text, expected);
    EXPECT_EQ(expected.size(), 64u);
}

INSTANTIATE_TEST_SUITE_P(Transformers, Oracle,
                         testing::Values("all_features", "long_beyond_the_window", "many_experts",
                                         "no_topk_norm", "one_kv_head", "wide_heads"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace tessera
