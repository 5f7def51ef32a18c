// Sums over rows of logits against the definitions, and the bootstrap against what is known of it.
#include "judge/score.h"

#include <cmath>

#include <gtest/gtest.h>

namespace tessera {
namespace {

// Softmax as it is defined, without any trick.
std::vector<double> probabilities(const std::vector<float>& logits) {
    double sum = 0;
    std::vector<double> p;
    for (const float logit : logits) sum += std::exp(double{logit});
    for (const float logit : logits) p.push_back(std::exp(double{logit}) / sum);
    return p;
}

TEST(Score, RowsAreComparedAsDefined) {
    const std::vector<float> standard = {0.5f, -1, 2, 0}, candidate = {0.25f, 1, 1.5f, -3};
    const auto p = probabilities(standard), q = probabilities(candidate);
    double kl = 0;
    for (size_t i = 0; i < p.size(); ++i) kl += p[i] * std::log(p[i] / q[i]);
    const RowDifference found = compare_rows(standard, candidate, 1);
    EXPECT_NEAR(found.kl, kl, 1e-12);
    EXPECT_NEAR(found.standard, -std::log(p[1]), 1e-12);
    EXPECT_NEAR(found.candidate, -std::log(q[1]), 1e-12);
    EXPECT_EQ(found.gap, 3);
    EXPECT_EQ(found.standard_top, 2u);
    EXPECT_EQ(found.candidate_top, 2u);
    EXPECT_NEAR(surprise(candidate, 1), found.candidate, 1e-12);
}

TEST(Score, LargeLogitsDoNotOverflowAndEqualRowsAreEqual) {
    const std::vector<float> row = {3e4f, -3e4f, 2.9e4f};
    EXPECT_EQ(surprise(row, 0), 0);
    EXPECT_EQ(surprise(row, 1), 6e4);
    EXPECT_EQ(compare_rows(row, row, 2).kl, 0);
    EXPECT_EQ(compare_rows(row, row, 2).gap, 0);
}

TEST(Score, SumsAreRatesOfTheWhole) {
    Sums sums{4, 10, 4 * std::log(2), 4 * std::log(3), 2, 3};
    sums += {4, 10, 4 * std::log(2), 4 * std::log(3), 0, 4};
    EXPECT_NEAR(sums.perplexity(), 3, 1e-12);
    EXPECT_NEAR(sums.cost(), 0.5, 1e-12);
    EXPECT_NEAR(sums.bits_per_byte(), 8 * std::log2(3) / 20, 1e-12);
    EXPECT_NEAR(sums.mean_kl(), 0.25, 1e-12);
    EXPECT_NEAR(sums.agreement(), 7 / 8.0, 1e-12);
}

TEST(Bootstrap, OneRunHasNoInterval) {
    const std::vector<Sums> runs = {{1, 1, 0, 1, 0, 0}};
    const Interval found = bootstrap(runs, &Sums::perplexity);
    EXPECT_NEAR(found.value, std::exp(1), 1e-12);
    EXPECT_TRUE(std::isnan(found.low) && std::isnan(found.high));
}

// Of n runs that agree with chance a, the interval's half width is 1.96 sqrt(a (1 - a) / n).
TEST(Bootstrap, IsAsWideAsTheBinomialIs) {
    std::vector<Sums> runs;
    for (int i = 0; i < 400; ++i) runs.push_back({1, 1, 0, 0, 0, i % 4 == 0 ? 1.0 : 0.0});
    const Interval found = bootstrap(runs, &Sums::agreement);
    const double half = 1.96 * std::sqrt(0.25 * 0.75 / 400);
    EXPECT_EQ(found.value, 0.25);
    EXPECT_NEAR(found.low, 0.25 - half, 0.15 * half);
    EXPECT_NEAR(found.high, 0.25 + half, 0.15 * half);
    const Interval again = bootstrap(runs, &Sums::agreement);
    EXPECT_EQ(found.low, again.low);
}

TEST(Bootstrap, EqualRunsLeaveNoDoubt) {
    const std::vector<Sums> runs(50, Sums{128, 500, 300, 301, 1, 120});
    const Interval found = bootstrap(runs, &Sums::cost);
    EXPECT_NEAR(found.low, found.value, 1e-12);
    EXPECT_NEAR(found.high, found.value, 1e-12);
}

}  // namespace
}  // namespace tessera
