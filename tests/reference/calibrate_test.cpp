// What experts multiply with, against sums made from the reference's own stages.
#include "reference/calibrate.h"

#include <numeric>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "reference/loops.h"

#include "support/seeded.h"
#include "support/toys.h"

namespace tessera {
namespace {

class Calibrated : public testing::Test {
  protected:
    Calibrated()
        : shape_(test::toy_shape()),
          made_(test::seeded_checkpoint(shape_, 9)),
          weights_(bind(made_.checkpoint, shape_)),
          reference_(weights_, Rounding::bf16),
          tokens_(70) {
        for (size_t i = 0; i < tokens_.size(); ++i)
            tokens_[i] = static_cast<uint32_t>(test::splitmix64(4, i) % shape_.vocab);
    }

    Shape shape_;
    test::SeededCheckpoint made_;
    Weights weights_;
    Reference reference_;
    std::vector<uint32_t> tokens_;
};

// Rows are told apart by what the layer's norm makes of the residual: every row that an expert was
// shown is one of those, and each of them is shown to as many experts as a token has.
TEST_F(Calibrated, ExpertsAreShownTheRowsRoutedToThem) {
    std::vector<std::vector<float>> attended(shape_.layers);
    std::vector<size_t> shown(shape_.layers);
    std::vector<std::vector<float>> rows(shape_.layers);
    Reference::Cache cache;
    reference_.forward(
        cache, tokens_,
        [&](uint32_t layer, Reference::Stage stage, std::span<const float> values) {
            if (stage == Reference::Stage::attended)
                attended[layer].assign(values.begin(), values.end());
        },
        [&](uint32_t layer, uint32_t expert, std::span<const float> in,
            std::span<const float> mixed) {
            EXPECT_EQ(in.size() / shape_.hidden, mixed.size() / shape_.expert_width);
            EXPECT_EQ(std::vector(mixed.begin(), mixed.end()),
                      loops::mixed(weights_.layers[layer].experts[expert], in, Rounding::bf16));
            shown[layer] += in.size() / shape_.hidden;
            rows[layer].insert(rows[layer].end(), in.begin(), in.end());
        });
    for (uint32_t layer = 0; layer < shape_.layers; ++layer) {
        EXPECT_EQ(shown[layer],
                  shape_.is_moe[layer] ? tokens_.size() * shape_.experts_per_token : 0);
        if (!shape_.is_moe[layer]) continue;
        const auto normed = loops::norm(attended[layer], weights_.layers[layer].post_norm,
                                        shape_.norm_epsilon, Rounding::bf16);
        const double one = std::accumulate(normed.begin(), normed.end(), 0.0);
        const double all = std::accumulate(rows[layer].begin(), rows[layer].end(), 0.0);
        EXPECT_NEAR(all, one * shape_.experts_per_token, 1e-3 * static_cast<double>(normed.size()));
    }
}

TEST_F(Calibrated, WeightsAreMeanSquaresWithAFewTypicalRows) {
    const Calibration found(reference_, tokens_, 32);
    // Layer 2, by hand, window by window.
    constexpr uint32_t kLayer = 2;
    struct Sum {
        double rows = 0;
        std::vector<double> in = std::vector<double>(160), mixed = std::vector<double>(256);
    };
    std::vector<Sum> sums(shape_.experts);
    for (size_t at = 0; at < tokens_.size(); at += 32) {
        Reference::Cache cache;
        reference_.forward(
            cache, std::span(tokens_).subspan(at, std::min<size_t>(32, tokens_.size() - at)), {},
            [&](uint32_t layer, uint32_t expert, std::span<const float> in,
                std::span<const float> mixed) {
                if (layer != kLayer) return;
                sums[expert].rows += static_cast<double>(in.size()) / 160;
                for (size_t i = 0; i < in.size(); ++i)
                    sums[expert].in[i % 160] += double{in[i]} * in[i];
                for (size_t i = 0; i < mixed.size(); ++i)
                    sums[expert].mixed[i % 256] += double{mixed[i]} * mixed[i];
            });
    }
    double all_rows = 0;
    std::vector<double> layer(160);
    for (const Sum& sum : sums) {
        all_rows += sum.rows;
        for (size_t i = 0; i < layer.size(); ++i) layer[i] += sum.in[i];
    }
    ASSERT_EQ(all_rows, 70.0 * shape_.experts_per_token);
    for (uint32_t e = 0; e < shape_.experts; ++e) {
        const std::string at = fmt::format("model.layers.{}.mlp.experts.{}.", kLayer, e);
        const auto up = found.column_weights(at + "up_proj");
        EXPECT_EQ(up, found.column_weights(at + "gate_proj"));
        for (size_t i = 0; i < up.size(); ++i) {
            const double expected =
                (sums[e].in[i] + 16 * layer[i] / all_rows) / (sums[e].rows + 16);
            EXPECT_NEAR(up[i], expected, 1e-4 * expected);
        }
        const auto down = found.column_weights(at + "down_proj");
        if (sums[e].rows == 0) continue;
        const double mean =
            std::accumulate(sums[e].mixed.begin(), sums[e].mixed.end(), 0.0) / (256 * sums[e].rows);
        for (size_t i = 0; i < down.size(); ++i) {
            const double expected = (sums[e].mixed[i] + 16 * mean) / (sums[e].rows + 16);
            EXPECT_NEAR(down[i], expected, 1e-3 * expected);
        }
    }
}

TEST_F(Calibrated, AnExpertNobodyChoseIsRoundedAsOthersAre) {
    const Calibration found(reference_, std::span(tokens_).first(1), 8);
    // Three layers of experts, one token, three experts each.
    EXPECT_EQ(found.unvisited(), 3u * (shape_.experts - shape_.experts_per_token));
    for (uint32_t e = 0; e < shape_.experts; ++e) {
        const auto down =
            found.column_weights(fmt::format("model.layers.1.mlp.experts.{}.down_proj", e));
        for (const float weight : down) EXPECT_GT(weight, 0);
    }
}

}  // namespace
}  // namespace tessera
