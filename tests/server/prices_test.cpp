#include "server/prices.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

TEST(Prices, TheListIsExactInPicodollars) {
    const TokenPrices base = token_prices({}, Mode::kBase);
    EXPECT_EQ(base.cached, 3'600);
    EXPECT_EQ(base.input, 435'000);
    EXPECT_EQ(base.output, 870'000);
    const TokenPrices ultraspeed = token_prices({}, Mode::kUltraspeed);
    EXPECT_EQ(ultraspeed.cached, 10'800);
    EXPECT_EQ(ultraspeed.input, 1'305'000);
    EXPECT_EQ(ultraspeed.output, 2'610'000);
}

TEST(Prices, ARequestCostsTheSumOfItsTokens) {
    const TokenPrices prices{1, 100, 10'000};
    const struct {
        TokenCounts tokens;
        PicoUsd cost;
    } cases[] = {
        {{0, 0, 0}, 0},   {{3, 0, 0}, 300},
        {{3, 2, 0}, 102},  // cached tokens are of the prompt, not beside it
        {{3, 3, 0}, 3},   {{3, 2, 5}, 50'102},
    };
    for (const auto& c : cases) EXPECT_EQ(cost_of(c.tokens, prices), c.cost);
}

TEST(Prices, TheDearestRequestFits) {
    ModelPrices dearest{kUsdPerMillionMax, kUsdPerMillionMax, kUsdPerMillionMax,
                        kUltraspeedFactorMax};
    const PicoUsd cost = cost_of({kTokensChargedMax, 0, kTokensChargedMax},
                                 token_prices(dearest, Mode::kUltraspeed));
    EXPECT_EQ(cost, PicoUsd{2} * kTokensChargedMax * 100'000'000'000);
}

TEST(PricesDeathTest, MoreCachedThanPromptIsABug) {
    EXPECT_DEATH(cost_of({2, 3, 0}, {}), "broken fact");
}

TEST(Prices, DollarsAreWrittenExactly) {
    EXPECT_EQ(usd_text(0), "0");
    EXPECT_EQ(usd_text(1), "0.000000000001");
    EXPECT_EQ(usd_text(870'000), "0.00000087");
    EXPECT_EQ(usd_text(1'500'000'000'000), "1.5");
    EXPECT_EQ(usd_text(20'000'000'000'000), "20");
}

}  // namespace
}  // namespace tessera
