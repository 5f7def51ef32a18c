// Rounds that a card makes by itself: they choose what steps choose, with the host's rule over the
// card's own logits, token for token, and end where they must. Without a card these are skipped,
// and say so.
#include <algorithm>

#include <gtest/gtest.h>

#include "gpu/sized.h"
#include "gpu/writing.h"

namespace tessera {
namespace {

using test::HostRunner;
using test::Pair;
using test::sized;
using test::Writing;

class GpuRounds : public testing::Test {
  protected:
    void SetUp() override {
        if (const std::string why = gpu::no_card(); !why.empty()) GTEST_SKIP() << "no GPU: " << why;
    }

    static RoundsAsk ask_for(float temperature, uint32_t drafts, uint32_t tokens) {
        RoundsAsk ask;
        ask.temperature = temperature;
        ask.seed = 77;
        ask.drafts = drafts;
        ask.tokens_max = tokens;
        ask.context = test::kWritingContext;
        return ask;
    }

    const Pair pair;
};

TEST_F(GpuRounds, ChooseWhatStepsChoose) {
    const uint32_t tokens = sized(60, 8), block = pair.shape.block;
    Writing writing(pair);
    for (const float temperature : {0.0f, 0.8f}) {
        const auto expected = writing.in_steps(ask_for(temperature, 0, tokens), tokens);
        for (const uint32_t drafts : {0u, 3u, block - 1}) {
            // Runs of rounds that end on the way, and begin again.
            RoundsAsk ask = ask_for(temperature, drafts, (tokens + 1) / 2);
            if (drafts == 3) {  // a policy that stops where a draft is not sure enough
                ask.depth.whole = false;
                ask.depth.rate = 1;
                std::ranges::fill(ask.depth.stands, 0.5);
                for (uint32_t i = 0; i < kDepthRows; ++i) ask.depth.seconds[i] = i == 2 ? 0 : 5;
                ask.first_depth = 1;
            }
            std::vector<Round> rounds;
            std::vector<uint32_t> found = writing.in_rounds(ask, tokens, &rounds);
            found.resize(expected.size());
            EXPECT_EQ(found, expected) << "T " << temperature << ", drafts " << drafts;
            for (const Round& round : rounds) {
                EXPECT_EQ(round.drafted, drafts);
                EXPECT_LE(round.count, round.verified + 1);
                EXPECT_GT(round.live_experts, 0u);
                EXPECT_TRUE(drafts == 3 || round.verified == drafts) << round.verified;
            }
            if (drafts == 3) {
                EXPECT_EQ(rounds[0].verified, 1u);
                EXPECT_EQ(rounds[1].verified, 2u);
            }
        }
    }
}

// Nuclei so small that the best score of all is often not in them.
TEST_F(GpuRounds, LeaveWhatTheHostsMasksLeave) {
    const uint32_t tokens = sized(48, 6);
    Writing writing(pair);
    uint32_t refused = 0;
    const auto unmasked = writing.in_steps(ask_for(3, 0, tokens), tokens);
    constexpr std::pair<float, float> kMasks[] = {{0.3f, 0}, {0.05f, 0}, {1, 0.4f}, {0.5f, 0.2f}};
    for (const auto& [top_p, min_p] : kMasks) {
        RoundsAsk ask = ask_for(3, 0, tokens);
        ask.top_p = top_p;
        ask.min_p = min_p;
        const auto expected = writing.in_steps(ask, tokens);
        refused += expected != unmasked;
        ask.drafts = 2;
        std::vector<uint32_t> found = writing.in_rounds(ask, tokens);
        found.resize(expected.size());
        EXPECT_EQ(found, expected) << "top-p " << top_p << ", min-p " << min_p;
    }
    EXPECT_GE(refused, 3u);
}

// What the card says of its drafts is what the drafter's logits say.
TEST_F(GpuRounds, SayHowSureTheDrafterIs) {
    Writing writing(pair);
    for (const float temperature : {0.0f, 0.8f}) {
        const RoundsAsk ask = ask_for(temperature, pair.shape.block - 1, 1);
        gpu::Sequence s = writing.decoder.begin(true);
        const std::vector<uint32_t> text = writing.begin(s);
        writing.decoder.catch_up(s);
        writing.decoder.draft(s, text.back());
        std::vector<float> expected(ask.drafts);
        for (uint32_t i = 0; i < ask.drafts; ++i)
            HostRunner::choose(ask, writing.decoder.draft_logits(i + 1),
                               static_cast<uint32_t>(text.size()) + i, &expected[i]);
        std::vector<Round> rounds;
        writing.in_rounds(ask, 1, &rounds);
        for (uint32_t i = 0; i < ask.drafts; ++i)
            EXPECT_NEAR(rounds[0].confidence[i], expected[i], 2e-2 * expected[i]) << i;
    }
}

TEST_F(GpuRounds, EndWhereTheyMust) {
    Writing writing(pair);
    RoundsAsk ask = ask_for(0.8f, pair.shape.block - 1, 50);
    const auto expected = writing.in_steps(ask, 8);
    // Behind a token that stops: the first of its kind.
    ask.stops = 1;
    ask.stop[0] = expected[11 + 5];
    const auto stop = std::find(expected.begin() + 11, expected.end(), ask.stop[0]);
    std::vector<Round> rounds;
    gpu::Sequence s = writing.decoder.begin(true);
    std::vector<uint32_t> text = writing.begin(s);
    for (Round round{}; round.last == 0;) {
        round = writing.decoder.round(s, text.back(), ask);
        text.insert(text.end(), round.tokens, round.tokens + round.count);
    }
    EXPECT_NE(std::find(text.begin() + 11, text.end(), ask.stop[0]), text.end());
    EXPECT_GE(text.size(), static_cast<size_t>(stop - expected.begin()) + 1);
    EXPECT_LT(text.size(), 11u + 50u);
    // Where the host asks for it, long before there are fifty.
    ask.stops = 0;
    gpu::Sequence other = writing.decoder.begin(true);
    text = writing.begin(other);
    uint32_t made = 0;
    for (Round round{}; round.last == 0; ++made) {
        round = writing.decoder.round(other, text.back(), ask);
        text.insert(text.end(), round.tokens, round.tokens + round.count);
        writing.decoder.stop_rounds();
    }
    EXPECT_LT(text.size(), 11u + 50u);
    // Where the context does.
    ask.context = 11 + 4;
    gpu::Sequence third = writing.decoder.begin(true);
    text = writing.begin(third);
    for (Round round{}; round.last == 0;) {
        round = writing.decoder.round(third, text.back(), ask);
        text.insert(text.end(), round.tokens, round.tokens + round.count);
    }
    EXPECT_EQ(text.size(), ask.context);
}

}  // namespace
}  // namespace tessera
