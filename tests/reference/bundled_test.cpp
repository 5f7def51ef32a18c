// The bundled model against transformers (tests/vectors/bundled.py): the published file's formats,
// chunks and scales, read by two readers that share no code.
#include <algorithm>
#include <cmath>
#include <fstream>

#include <gtest/gtest.h>

#include "base/json.h"
#include "reference/reference.h"

namespace tessera {
namespace {

uint32_t best(std::span<const float> logits) {
    return static_cast<uint32_t>(std::ranges::max_element(logits) - logits.begin());
}

class Bundled : public testing::Test {
  protected:
    Bundled()
        : checkpoint_(open_checkpoint(TESSERA_MODEL)),
          weights_(bind(checkpoint_, parse_shape(checkpoint_.config, "config.json"))) {
        std::ifstream file(TESSERA_VECTORS "/bundled.json");
        vector_ = Json::parse(file);
    }

    // The greedy continuation of the vector's prompt, and the logits it began with.
    std::vector<uint32_t> greedy(Rounding rounding, size_t count,
                                 std::vector<float>& logits) const {
        const Reference reference(weights_, rounding);
        Reference::Cache cache;
        std::vector<float> hidden =
            reference.forward(cache, vector_["prompt"].get<std::vector<uint32_t>>());
        std::vector<uint32_t> text;
        while (text.size() < count) {
            const std::vector<float> row =
                reference.logits(std::span(hidden).last(reference.shape().hidden));
            if (text.empty()) logits = row;
            text.push_back(best(row));
            hidden = reference.forward(cache, std::span(text).last(1));
        }
        return text;
    }

    double relative_error(std::span<const float> logits) const {
        const auto expected = vector_["logits"].get<std::vector<float>>();
        double difference = 0, norm = 0;
        for (size_t i = 0; i < expected.size(); ++i) {
            difference += std::pow(double{logits[i]} - expected[i], 2);
            norm += std::pow(double{expected[i]}, 2);
        }
        return std::sqrt(difference / norm);
    }

    Checkpoint checkpoint_;
    Weights weights_;
    Json vector_;
};

TEST_F(Bundled, AgreesWithTransformersInFp32) {
    std::vector<float> logits;
    const auto expected = vector_["greedy"].get<std::vector<uint32_t>>();
    EXPECT_EQ(greedy(Rounding::none, expected.size(), logits), expected);
    const double error = relative_error(logits);
    EXPECT_LE(error, 1e-5);
    std::printf("fp32: |difference| / |logits| = %.2e\n", error);
}

// What rounding activations to bf16 costs: the figure of docs/NUMERICS.md.
TEST_F(Bundled, RoundingToBf16StaysSmall) {
    std::vector<float> logits;
    greedy(Rounding::bf16, 1, logits);
    const double error = relative_error(logits);
    EXPECT_GT(error, 0);
    EXPECT_LE(error, 0.02);
    std::printf("bf16: |difference| / |logits| = %.2e\n", error);
}

}  // namespace
}  // namespace tessera
