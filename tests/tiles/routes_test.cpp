// Routing against its definition, spelled out: of every row the best experts with the bias, the
// lower index winning a tie, weighed without it; slots and pairs in ascending order.
#include "tiles/routes.h"

#include <cmath>
#include <numeric>
#include <span>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tiles/support.h"

namespace tessera {
namespace {

using test::Draw;

constexpr uint32_t kUntouched = 0xabababab;

// Routes of scores [row][expert], in memory with room behind it that nobody may write.
struct Routed {
    Routed(const RouteShape& shape, std::vector<std::vector<float>> logits, std::vector<float> bias,
           bool normalize = true, float scale = 1)
        : memory(route_bytes(shape.rows, shape.per_token, shape.experts) / 4 + 8, kUntouched),
          at(routes_at(reinterpret_cast<std::byte*>(memory.data()), shape)) {
        const uint64_t stride = shape.experts + 3;
        std::vector<float> flat(stride * logits.size(), NAN);
        for (size_t row = 0; row < logits.size(); ++row)
            std::ranges::copy(logits[row], flat.begin() + static_cast<ptrdiff_t>(row * stride));
        route(flat.data(), stride, static_cast<uint32_t>(logits.size()), shape,
              {bias.data(), normalize, scale}, at);
        for (size_t i = memory.size() - 8; i < memory.size(); ++i)
            EXPECT_EQ(memory[i], kUntouched) << "written behind its bytes";
    }

    std::vector<uint32_t> experts() const { return {at.expert, at.expert + *at.live}; }
    std::span<const uint32_t> pairs(uint32_t slot) const {
        return {at.pair + at.first[slot], at.pair + at.first[slot + 1]};
    }
    // The expert of a pair, from the slots.
    uint32_t expert_of(uint32_t pair) const {
        for (uint32_t slot = 0; slot < *at.live; ++slot) {
            if (std::ranges::count(pairs(slot), pair)) return at.expert[slot];
        }
        return kUntouched;
    }

    std::vector<uint32_t> memory;
    Routes at;
};

void expect_definition(const RouteShape& shape, const std::vector<std::vector<float>>& logits,
                       const std::vector<float>& bias, bool normalize, float scale) {
    const Routed routed(shape, logits, bias, normalize, scale);
    const auto rows = static_cast<uint32_t>(logits.size());
    std::vector<std::vector<uint32_t>> pairs_of(shape.experts);
    for (uint32_t row = 0; row < rows; ++row) {
        std::vector<float> score, biased;
        for (uint32_t e = 0; e < shape.experts; ++e) {
            score.push_back(1.0f / (1.0f + std::exp(-logits[row][e])));
            biased.push_back(score[e] + bias[e]);
        }
        std::vector<uint32_t> order(shape.experts);
        std::iota(order.begin(), order.end(), 0u);
        std::ranges::stable_sort(order,
                                 [&](uint32_t a, uint32_t b) { return biased[a] > biased[b]; });
        double sum = 0;
        for (uint32_t i = 0; i < shape.per_token; ++i) sum += score[order[i]];
        for (uint32_t i = 0; i < shape.per_token; ++i) {
            const uint32_t pair = row * shape.per_token + i;
            pairs_of[order[i]].push_back(pair);
            const double expected = score[order[i]] / (normalize ? sum : 1) * scale;
            ASSERT_NEAR(routed.at.weight[pair], expected, 1e-6 * expected)
                << "row " << row << ", choice " << i;
        }
    }
    std::vector<uint32_t> live;
    for (uint32_t e = 0; e < shape.experts; ++e)
        if (!pairs_of[e].empty()) live.push_back(e);
    ASSERT_EQ(routed.experts(), live);
    ASSERT_EQ(routed.at.first[0], 0u);
    for (uint32_t slot = 0; slot < live.size(); ++slot)
        ASSERT_TRUE(std::ranges::equal(routed.pairs(slot), pairs_of[live[slot]]))
            << "expert " << live[slot];
    ASSERT_EQ(routed.at.first[live.size()], rows * shape.per_token);
}

TEST(Routes, AreWhatTheirDefinitionSays) {
    Draw draw(1);
    struct Sizes {
        uint32_t rows, experts, per_token;
    };
    for (const Sizes& s : std::vector<Sizes>{{1, 1, 1},
                                             {1, 12, 3},
                                             {8, 12, 3},
                                             {8, 384, 8},
                                             {64, 16, 2},
                                             {64, 12, 12},
                                             {5, 200, 1},
                                             {64, 384, 8}}) {
        SCOPED_TRACE(std::to_string(s.rows) + " rows, " + std::to_string(s.per_token) + " of " +
                     std::to_string(s.experts));
        for (int repeat = 0; repeat < 4; ++repeat) {
            std::vector<std::vector<float>> logits(s.rows, std::vector<float>(s.experts));
            std::vector<float> bias(s.experts);
            for (auto& row : logits)
                for (float& value : row) value = 4 * draw.unit();
            for (float& value : bias) value = 0.2f * draw.unit();
            const float scale = repeat % 2 == 0 ? 1.0f : 2.5f;
            expect_definition({s.rows, s.experts, s.per_token}, logits, bias, repeat < 2, scale);
        }
    }
}

// Few distinct scores: nearly every choice is a tie.
TEST(Routes, AreWhatTheirDefinitionSaysWithTies) {
    Draw draw(2);
    for (int repeat = 0; repeat < 20; ++repeat) {
        std::vector<std::vector<float>> logits(6, std::vector<float>(10));
        for (auto& row : logits)
            for (float& value : row) value = static_cast<float>(draw.below(3));
        expect_definition({6, 10, 4}, logits, std::vector<float>(10), true, 1);
    }
}

TEST(Routes, FewerRowsThanTheShapeHasRoomFor) {
    Draw draw(3);
    for (const uint32_t rows : {0u, 1u, 3u}) {
        std::vector<std::vector<float>> logits(rows, std::vector<float>(12));
        for (auto& row : logits)
            for (float& value : row) value = draw.unit();
        expect_definition({8, 12, 3}, logits, std::vector<float>(12), true, 1);
    }
}

TEST(Routes, TheLowerIndexWinsATie) {
    const Routed routed({1, 5, 3}, {{0, 2, 0, 2, 2}}, {0, 0, 0, 0, 0});
    EXPECT_EQ(routed.experts(), (std::vector<uint32_t>{1, 3, 4}));
    const Routed all({1, 5, 3}, {{7, 7, 7, 7, 7}}, {0, 0, 0, 0, 0});
    EXPECT_EQ(all.experts(), (std::vector<uint32_t>{0, 1, 2}));
}

TEST(Routes, TheBiasChoosesAndDoesNotWeigh) {
    // Expert 0 scores 1/2, the others more; its bias makes it the first choice.
    const Routed routed({1, 4, 2}, {{0, 1, 2, 3}}, {5, 0, 0, 0}, false);
    EXPECT_EQ(routed.experts(), (std::vector<uint32_t>{0, 3}));
    EXPECT_EQ(routed.expert_of(0), 0u);
    EXPECT_FLOAT_EQ(routed.at.weight[0], 0.5f);
    EXPECT_FLOAT_EQ(routed.at.weight[1], 1 / (1 + std::exp(-3.0f)));
    // A bias below every score takes none away: there are no others.
    const Routed low({1, 2, 2}, {{0, 1}}, {-9, -9}, false);
    EXPECT_EQ(low.experts(), (std::vector<uint32_t>{0, 1}));
}

TEST(Routes, ChoicesComeBestFirst) {
    const Routed routed({1, 4, 3}, {{1, 3, 2, 0}}, {0, 0, 0, 0});
    EXPECT_EQ(routed.expert_of(0), 1u);
    EXPECT_EQ(routed.expert_of(1), 2u);
    EXPECT_EQ(routed.expert_of(2), 0u);
}

TEST(Routes, WeightsAreDividedByTheirSumOnlyWhereAsked) {
    // Three scores of 1/2, times 3.
    for (const bool normalize : {false, true}) {
        const Routed routed({1, 3, 3}, {{0, 0, 0}}, {0, 0, 0}, normalize, 3);
        for (int i = 0; i < 3; ++i)
            EXPECT_FLOAT_EQ(routed.at.weight[i], normalize ? 1.0f : 1.5f) << i;
    }
}

TEST(Routes, AllRowsToOneExpertFillOneSlot) {
    std::vector<std::vector<float>> logits(8, std::vector<float>(12, -3));
    for (auto& row : logits) row[7] = 3;
    const Routed routed({8, 12, 1}, logits, std::vector<float>(12));
    EXPECT_EQ(routed.experts(), (std::vector<uint32_t>{7}));
    EXPECT_THAT(routed.pairs(0), testing::ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
}

// More pairs than experts, and more experts than pairs: slots() bounds both, and is reached.
TEST(Routes, SlotsSufficeWhereEveryPairHasItsExpert) {
    std::vector<std::vector<float>> few(2, std::vector<float>(100, -3));
    for (uint32_t row = 0; row < 2; ++row)
        for (uint32_t i = 0; i < 3; ++i) few[row][10 * i + row] = 1;
    const RouteShape wide{2, 100, 3};
    EXPECT_EQ(wide.slots(), 6u);
    EXPECT_EQ(Routed(wide, few, std::vector<float>(100)).experts(),
              (std::vector<uint32_t>{0, 1, 10, 11, 20, 21}));

    const RouteShape narrow{8, 3, 2};
    EXPECT_EQ(narrow.slots(), 3u);
    std::vector<std::vector<float>> many;
    for (uint32_t row = 0; row < 8; ++row) {
        many.push_back({1, 1, 1});
        many.back()[row % 3] = -1;
    }
    EXPECT_EQ(Routed(narrow, many, {0, 0, 0}).experts(), (std::vector<uint32_t>{0, 1, 2}));
}

}  // namespace
}  // namespace tessera
