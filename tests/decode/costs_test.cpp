// Prices of passes: medians, what lies between and beyond what was measured, and that more rows are
// never cheaper.
#include "decode/costs.h"

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace tessera {
namespace {

TEST(RunningMedian, OfTheLastFew) {
    RunningMedian running;
    std::vector<double> all;
    std::mt19937 random(1);
    const auto below = [&](uint32_t limit) { return static_cast<uint32_t>(random() % limit); };
    for (uint32_t i = 0; i < 100; ++i) {
        all.push_back(below(1000));
        running.add(all.back());
        std::vector<double> last(
            all.end() - std::min<ptrdiff_t>(RunningMedian::kWindow, std::ssize(all)), all.end());
        std::ranges::sort(last);
        const size_t half = last.size() / 2;
        const double median = last.size() % 2 == 1 ? last[half] : (last[half - 1] + last[half]) / 2;
        ASSERT_EQ(running.median(), median) << i;
        ASSERT_EQ(running.count(), last.size());
    }
}

struct Measured {
    uint32_t rows;
    double seconds;
};

struct Curve {
    const char* what;
    std::vector<Measured> measured;
    std::vector<double> seconds;  // of 1 to 8 rows
};

TEST(Costs, FollowTheTable) {
    for (const Curve& curve : std::vector<Curve>{
             {"nothing measured: the prior alone",
              {},
              {1e-3, 1.4e-3, 1.8e-3, 2.2e-3, 2.6e-3, 3.0e-3, 3.4e-3, 3.8e-3}},
             {"one row measured: the prior's slope above",
              {{1, 10}},
              {10, 14, 18, 22, 26, 30, 34, 38}},
             {"eight rows measured: the prior's slope below",
              {{8, 38}},
              {10, 14, 18, 22, 26, 30, 34, 38}},
             {"both ends: a line, none of the prior",
              {{1, 1}, {8, 15}},
              {1, 3, 5, 7, 9, 11, 13, 15}},
             {"in the middle: the prior at both ends",
              {{2, 14}, {4, 24}},
              {10, 14, 19, 24, 24 * 2.6 / 2.2, 24 * 3 / 2.2, 24 * 3.4 / 2.2, 24 * 3.8 / 2.2}},
             {"all measured",
              {{1, 1}, {2, 1}, {3, 2}, {4, 2}, {5, 9}, {6, 9}, {7, 10}, {8, 11}},
              {1, 1, 2, 2, 9, 9, 10, 11}},
             {"out of order: pooled", {{1, 4}, {8, 2}}, {3, 3, 3, 3, 3, 3, 3, 3}},
             {"out of order: by the number of measurements",
              {{1, 6}, {8, 2}, {8, 2}, {8, 2}},
              {3, 3, 3, 3, 3, 3, 3, 3}},
             {"out of order in the middle: pooled until they are in order",
              {{1, 1}, {2, 8}, {3, 7}, {4, 3}, {8, 10}},
              {1, 6, 6, 6, 7, 8, 9, 10}},
             {"interruptions are not the price",
              {{1, 1}, {1, 1}, {1, 500}, {1, 1}, {1, 70}, {8, 8}},
              {1, 2, 3, 4, 5, 6, 7, 8}},
             {"what is no pass of 1 to 8 rows, and what is no time",
              {{1, 10},
               {0, 99},
               {9, 99},
               {1, 0},
               {1, -1},
               {2, std::numeric_limits<double>::quiet_NaN()},
               {2, std::numeric_limits<double>::infinity()}},
              {10, 14, 18, 22, 26, 30, 34, 38}}}) {
        Costs costs;
        for (const Measured& measured : curve.measured) costs.step(measured.rows, measured.seconds);
        for (uint32_t rows = 1; rows <= kRowsMax; ++rows) {
            EXPECT_NEAR(costs.step_seconds(rows), curve.seconds[rows - 1], 1e-9)
                << curve.what << ", " << rows << " rows";
        }
    }
}

TEST(Costs, OfTheDrafter) {
    Costs costs;
    EXPECT_NEAR(costs.draft_seconds(), 0.15 * 3.8e-3, 1e-9);
    costs.step(8, 20);
    EXPECT_NEAR(costs.draft_seconds(), 3, 1e-9);
    costs.draft(0);
    EXPECT_NEAR(costs.draft_seconds(), 3, 1e-9);
    for (const double seconds : {1, 100, 2}) costs.draft(seconds);
    EXPECT_EQ(costs.draft_seconds(), 2);
}

TEST(Costs, CountTheirSamples) {
    Costs costs;
    for (uint32_t i = 0; i < 40; ++i) {
        EXPECT_EQ(costs.samples(3), std::min(i, RunningMedian::kWindow));
        costs.step(3, 1);
    }
    EXPECT_EQ(costs.samples(2), 0u);
}

// Under any noise a further row never costs less than nothing, and a price stays within what was
// measured for that row count and those beyond it.
TEST(Costs, AreMonotone) {
    std::mt19937 random(2);
    const auto below = [&](uint32_t limit) { return static_cast<uint32_t>(random() % limit); };
    for (uint32_t round = 0; round < 300; ++round) {
        Costs costs;
        for (uint32_t i = 0; i < 50; ++i) {
            const double spike = below(10) == 0 ? 20 : 1;
            costs.step(1 + below(kRowsMax), spike * (1 + below(100)));
            for (uint32_t rows = 2; rows <= kRowsMax; ++rows) {
                ASSERT_LE(costs.step_seconds(rows - 1), costs.step_seconds(rows) * (1 + 1e-12));
            }
            ASSERT_GT(costs.step_seconds(1), 0);
        }
    }
}

TEST(Costs, FollowAMachineThatChanges) {
    Costs costs;
    for (uint32_t i = 0; i < 100; ++i) costs.step(1, 1);
    for (uint32_t i = 0; i < RunningMedian::kWindow / 2; ++i) costs.step(1, 3);
    EXPECT_EQ(costs.step_seconds(1), 1);
    costs.step(1, 3);
    EXPECT_EQ(costs.step_seconds(1), 3);
}

}  // namespace
}  // namespace tessera
