// Each rule of the controller by itself; controller_sim_test.cpp has them all at once.
#include "decode/controller.h"

#include <limits>
#include <vector>

#include <gtest/gtest.h>

namespace tessera {
namespace {

constexpr Controller::Plan kNone = {DraftSource::none, 0};

// Prices known so well that nothing is tried for their sake.
Costs measured(const std::array<double, kRowsMax>& seconds, double draft_seconds) {
    Costs costs;
    for (uint32_t i = 0; i < RunningMedian::kWindow; ++i) {
        for (uint32_t rows = 1; rows <= kRowsMax; ++rows) costs.step(rows, seconds[rows - 1]);
        costs.draft(draft_seconds);
    }
    return costs;
}

Costs flat() {
    return measured({1, 1, 1, 1, 1, 1, 1, 1}, 0.1);
}

Costs linear() {
    return measured({1, 1.4, 1.8, 2.2, 2.6, 3, 3.4, 3.8}, 0.5);
}

std::vector<float> sure(float confidence, uint32_t count = kRowsMax - 1) {
    return std::vector<float>(count, confidence);
}

// One step whose drafts are accepted up to `accepted`, at the price the costs expect.
Controller::Plan step(Controller& controller, const Costs& costs, uint32_t suffix_length,
                      float confidence, uint32_t accepted) {
    const Controller::Plan plan = controller.plan(suffix_length, 100);
    const std::vector<float> drafted =
        sure(confidence, plan.source == DraftSource::block ? plan.count : 0);
    const uint32_t verified =
        plan.source == DraftSource::block ? controller.depth(drafted) : plan.count;
    const double draft_seconds = plan.source == DraftSource::block ? costs.draft_seconds() : 0;
    controller.observe({plan.source, verified, std::min(accepted, verified),
                        draft_seconds + costs.step_seconds(verified + 1)},
                       drafted);
    return plan;
}

// Steps of a refused block until the controller pauses.
void refuse_until_paused(Controller& controller, const Costs& costs) {
    for (uint32_t i = 0; i < 1000 && !controller.paused(); ++i) step(controller, costs, 0, 0.9f, 0);
    ASSERT_TRUE(controller.paused());
}

// --------------------------------------------------------------------------------------- modes

struct ModeCase {
    const char* what;
    ControllerOptions options;
    uint32_t suffix_length;
    uint32_t room;
    Controller::Plan plan;
};

TEST(Controller, FollowsItsMode) {
    const Costs costs = flat();
    for (const ModeCase& c : std::vector<ModeCase>{
             {"off", {DraftMode::off}, 40, 100, kNone},
             {"fixed", {DraftMode::fixed}, 40, 100, {DraftSource::block, 7}},
             {"fixed, fewer", {DraftMode::fixed, 3}, 40, 100, {DraftSource::block, 3}},
             {"fixed, little room", {DraftMode::fixed}, 0, 2, {DraftSource::block, 2}},
             {"fixed, no room", {DraftMode::fixed}, 0, 0, kNone},
             {"fixed, no drafter", {DraftMode::fixed, 7, false}, 40, 100, kNone},
             {"automatic", {DraftMode::automatic}, 0, 100, {DraftSource::block, 7}},
             {"automatic, fewer", {DraftMode::automatic, 2}, 0, 100, {DraftSource::block, 2}},
             {"automatic, little room", {DraftMode::automatic}, 0, 1, {DraftSource::block, 1}},
             {"automatic, no room", {DraftMode::automatic}, 40, 0, kNone},
             {"automatic, a long match", {DraftMode::automatic}, 40, 100, {DraftSource::suffix, 7}},
             {"automatic, a match, fewer",
              {DraftMode::automatic, 2},
              40,
              100,
              {DraftSource::suffix, 2}},
             {"automatic, a match, little room",
              {DraftMode::automatic},
              40,
              3,
              {DraftSource::suffix, 3}},
             {"no drafter, no match", {DraftMode::automatic, 7, false}, 0, 100, kNone},
             {"no drafter, a match",
              {DraftMode::automatic, 7, false},
              9,
              100,
              {DraftSource::suffix, 7}}}) {
        Controller controller(c.options, costs);
        for (uint32_t i = 0; i < 100; ++i) {  // nothing wears off where nothing is observed
            ASSERT_EQ(controller.plan(c.suffix_length, c.room), c.plan) << c.what << ", " << i;
        }
    }
}

TEST(Controller, VerifiesAllOfAFixedBlock) {
    const Costs costs = linear();
    Controller controller({DraftMode::fixed}, costs);
    for (uint32_t i = 0; i < 1000; ++i) {
        EXPECT_EQ(controller.depth(sure(0.01f, 7)), 7u);
        EXPECT_EQ(step(controller, costs, 40, 0.01f, 0), (Controller::Plan{DraftSource::block, 7}));
    }
    EXPECT_FALSE(controller.paused());
    EXPECT_EQ(controller.counters().pauses, 0u);
}

// --------------------------------------------------------------------------------------- depth

struct Depth {
    const char* what;
    std::array<double, kRowsMax> seconds;
    std::vector<float> confidence;
    uint32_t depth;
};

TEST(Controller, VerifiesAsDeepAsPays) {
    const std::array<double, kRowsMax> level = {1, 1, 1, 1, 1, 1, 1, 1};
    const std::array<double, kRowsMax> slope = {1, 1.4, 1.8, 2.2, 2.6, 3, 3.4, 3.8};
    for (const Depth& c : std::vector<Depth>{
             {"nothing drafted", level, {}, 0},
             {"free rows", level, sure(0.3f), 7},
             {"free rows, a short block", level, sure(0.3f, 2), 2},
             {"sure", slope, sure(0.999f), 7},
             {"unsure", slope, sure(0.3f), 0},
             {"reach is a product: 0.75, 0.56, 0.42 pay, 0.32 does not", slope, sure(0.75f), 3},
             {"up to the doubt", slope, {0.97f, 0.97f, 0.1f, 0.97f, 0.97f, 0.97f, 0.97f}, 2},
             {"past a doubt that is worth it",
              {1, 1.1, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9},
              {0.75f, 0.75f, 0.999f, 0.999f, 0.999f, 0.999f, 0.999f},
              7},
             {"flat, then steep", {1, 1, 1, 1, 9, 9, 9, 9}, sure(0.97f), 3},
             {"steep, then flat: past a first row that does not pay",
              {1, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5},
              sure(0.97f),
              7},
             {"steep, then flat, unsure", {1, 3, 3, 3, 3, 3, 3, 3}, sure(0.55f), 0},
             {"no number", slope, sure(std::numeric_limits<float>::quiet_NaN()), 0},
             {"out of range", slope, {7, -7, 7}, 1}}) {
        const Costs costs = measured(c.seconds, 0.1);
        Controller controller({DraftMode::automatic}, costs);
        EXPECT_EQ(controller.depth(c.confidence), c.depth) << c.what;
    }
}

// The better the session does, the more a second is worth.
TEST(Controller, ASecondIsWorthWhatTheSessionMakesOfIt) {
    const Costs costs = linear();
    Controller controller({DraftMode::automatic}, costs);
    const uint32_t at_first = controller.depth(sure(0.75f));
    for (uint32_t i = 0; i < 50; ++i) step(controller, costs, 40, 0, 7);  // copies, all accepted
    EXPECT_LT(controller.depth(sure(0.75f)), at_first);
}

TEST(Controller, TriesDepthsOfUnknownPrice) {
    Costs costs;
    for (uint32_t i = 0; i < 5; ++i) {
        costs.step(1, 1);
        costs.step(8, 1.5);
    }
    Controller controller({DraftMode::automatic}, costs);
    std::array<uint32_t, kRowsMax> tried{};
    for (uint32_t i = 0; i < 1000; ++i) {
        const uint32_t depth = controller.depth(sure(0.999f));
        ++tried[depth];
        costs.step(depth + 1, 1 + 0.07 * depth);
    }
    EXPECT_EQ(tried[0], 0u);
    for (uint32_t depth = 1; depth < 7; ++depth) EXPECT_EQ(tried[depth], 3u) << depth;
    EXPECT_EQ(controller.counters().explored_steps, 18u);
}

// --------------------------------------------------------------------------------- calibration

TEST(Calibration, TakesTheDraftersWordAtFirst) {
    const Calibration calibration;
    double before = 0;
    for (const float confidence : {0.0f, 0.07f, 0.15f, 0.25f, 0.35f, 0.45f, 0.55f, 0.65f, 0.75f,
                                   0.85f, 0.93f, 0.96f, 0.98f, 0.993f, 0.997f, 1.0f}) {
        EXPECT_NEAR(calibration.probability(confidence), confidence, 0.051);
        EXPECT_GT(calibration.probability(confidence), before);  // a bin each
        before = calibration.probability(confidence);
    }
    EXPECT_GT(calibration.probability(1.0f), 0.999);
}

TEST(Calibration, LearnsWhatConfidenceIsWorth) {
    Calibration calibration;
    const std::vector<float> block = {0.97f, 0.85f, 0.85f, 0.55f};
    for (uint32_t i = 0; i < 500; ++i) calibration.observe(block, 4, i % 2 == 0 ? 1 : 2);
    EXPECT_NEAR(calibration.probability(0.97f), 1, 0.01);
    // Of the two at 0.85: accepted and refused, or refused at once: one of three.
    EXPECT_NEAR(calibration.probability(0.85f), 1.0 / 3, 0.02);
    // Never reached: still the drafter's word.
    EXPECT_NEAR(calibration.probability(0.55f), 0.55, 1e-6);
    EXPECT_NEAR(calibration.probability(0.75f), 0.75, 1e-6);
    // What is no longer seen is forgotten.
    for (uint32_t i = 0; i < 1000; ++i) calibration.observe({}, 0, 0);
    EXPECT_NEAR(calibration.probability(0.85f), 0.85, 0.01);
}

TEST(Calibration, SaysNothingOfDraftsNotVerified) {
    Calibration calibration;
    for (uint32_t i = 0; i < 50; ++i) calibration.observe(sure(0.95f), 1, 1);
    for (uint32_t i = 0; i < 50; ++i) calibration.observe(sure(0.75f), 0, 0);
    EXPECT_GT(calibration.probability(0.95f), 0.97);
    EXPECT_NEAR(calibration.probability(0.75f), 0.75, 1e-6);
}

// ------------------------------------------------------------------------------------ baseline

TEST(Controller, MeasuresOneRowSoonWhileItIsUnknown) {
    Costs costs;
    costs.step(8, 1);
    Controller controller({DraftMode::automatic}, costs);
    std::vector<uint32_t> singles;
    for (uint32_t i = 1; i <= 300; ++i) {
        if (controller.plan(0, 100).source == DraftSource::none) {
            singles.push_back(i);
            costs.step(1, 0.9);
            controller.observe({DraftSource::none, 0, 0, 0.9}, {});
        } else {
            controller.observe({DraftSource::block, 7, 7, 1}, sure(0.99f));
        }
    }
    EXPECT_EQ(singles, (std::vector<uint32_t>{4, 8, 12, 140, 268}));
    EXPECT_EQ(controller.counters().baseline_steps, 5u);
}

TEST(Controller, ABlockOfWhichNothingIsVerifiedMeasuresOneRowToo) {
    const Costs costs = flat();
    Controller controller({DraftMode::automatic}, costs);
    for (uint32_t i = 0; i < 1000; ++i) {
        EXPECT_EQ(controller.plan(0, 100).source, DraftSource::block);
        const uint32_t verified = i % 100 == 0 ? 0 : 7;
        controller.observe({DraftSource::block, verified, verified, 1}, sure(0.99f));
    }
}

// ---------------------------------------------------------------------------- pauses and probes

// Runs of steps without and with a block, in turn, of drafts that are all refused.
std::vector<uint32_t> refused_runs(Controller& controller, const Costs& costs, uint32_t steps) {
    std::vector<uint32_t> runs;
    DraftSource last = DraftSource::block;
    uint32_t run = 0;
    for (uint32_t i = 0; i < steps; ++i) {
        const DraftSource source = step(controller, costs, 0, 0.9f, 0).source;
        if (source != last) {
            runs.push_back(run);
            run = 0;
            last = source;
        }
        ++run;
    }
    return runs;
}

TEST(Controller, PausesWhatIsSlowerAndProbesEverMoreRarely) {
    const Costs costs = linear();
    Controller controller({DraftMode::automatic}, costs);
    EXPECT_EQ(refused_runs(controller, costs, 2588),
              (std::vector<uint32_t>{16, 8,   2, 16,  2, 32,  2, 64,  2, 128,
                                     2,  256, 2, 512, 2, 512, 2, 512, 2, 512}));
    EXPECT_EQ(controller.counters().pauses, 11u);
    EXPECT_EQ(controller.counters().probes, 10u);
}

TEST(Controller, SaysHowLongADrafterMayRest) {
    const Costs costs = linear();
    Controller controller({DraftMode::automatic}, costs);
    ASSERT_NO_FATAL_FAILURE(refuse_until_paused(controller, costs));
    for (uint32_t left = controller.plans_until_probe(); left > 0; --left) {
        ASSERT_EQ(controller.plans_until_probe(), left);
        ASSERT_EQ(step(controller, costs, 0, 0.9f, 0).source, DraftSource::none);
    }
    EXPECT_EQ(step(controller, costs, 0, 0.9f, 0).source, DraftSource::block);
    EXPECT_FALSE(controller.paused());
    EXPECT_EQ(controller.plans_until_probe(), 0u);
}

TEST(Controller, AProbeThatPaysEndsThePauseAndWhatIsProvenWaitsLittleAgain) {
    const Costs costs = linear();
    Controller controller({DraftMode::automatic}, costs);
    refused_runs(controller, costs, 700);
    EXPECT_EQ(controller.counters().pauses, 7u);
    uint32_t wait = 0;
    while (wait <= 512 && step(controller, costs, 0, 0.9f, 7).source == DraftSource::none) ++wait;
    ASSERT_LE(wait, 512u);
    // From now on all is accepted.
    for (uint32_t i = 0; i < 100; ++i) {
        ASSERT_EQ(step(controller, costs, 0, 0.9f, 7).source, DraftSource::block) << i;
    }
    // And then nothing: as at the start.
    ASSERT_NO_FATAL_FAILURE(refuse_until_paused(controller, costs));
    EXPECT_EQ(controller.plans_until_probe(), 8u);
}

// A probe must verify, whatever it has learnt to expect, or it could never be surprised.
TEST(Controller, AProbeVerifiesSomething) {
    const Costs costs = linear();
    Controller controller({DraftMode::automatic}, costs);
    refused_runs(controller, costs, 100);
    for (uint32_t i = 0; i <= 512 && controller.plan(0, 100).source == DraftSource::none; ++i) {
        controller.observe({DraftSource::none, 0, 0, 1}, {});
    }
    ASSERT_FALSE(controller.paused());
    EXPECT_EQ(controller.depth(sure(0.01f)), 1u);
}

// Interruptions hit steps with and without drafts alike; prices, being medians, do not show them.
TEST(Controller, InterruptionsDoNotPause) {
    const Costs costs = linear();
    Controller controller({DraftMode::automatic}, costs);
    for (uint32_t i = 0; i < 2000; ++i) {
        if (controller.plan(0, 100).source == DraftSource::none) {
            controller.observe({DraftSource::none, 0, 0, 1}, {});
            continue;
        }
        const double seconds = costs.draft_seconds() + costs.step_seconds(8);
        controller.observe({DraftSource::block, 7, 5, seconds * (i % 20 == 0 ? 50 : 1)},
                           sure(0.9f));
    }
    EXPECT_EQ(controller.counters().pauses, 0u);
}

// -------------------------------------------------------------------------------- inheritance

// A text that follows one on which drafting did not pay goes on with its pause; one that follows a
// text on which it paid drafts at once, and gives up sooner than the first if this one is not like
// it.
TEST(Controller, BeginsWithWhatTheLastOneLearnt) {
    const Costs costs = linear();
    const auto run = [&](Controller& controller, uint32_t steps, uint32_t accepted) {
        uint32_t drafted = 0;
        for (uint32_t i = 0; i < steps; ++i)
            drafted += step(controller, costs, 0, 0.9f, accepted).source == DraftSource::block;
        return drafted;
    };
    Controller hopeless({DraftMode::automatic}, costs);
    run(hopeless, 200, 0);
    ASSERT_TRUE(hopeless.paused());
    const Experience bad = hopeless.experience();
    Controller after({DraftMode::automatic}, costs, &bad);
    EXPECT_TRUE(after.paused());
    EXPECT_EQ(after.plans_until_probe(), hopeless.plans_until_probe());
    const uint32_t wait = after.plans_until_probe();
    EXPECT_EQ(run(after, wait, 0), 0u);
    EXPECT_GT(run(after, 4, 0), 0u) << "the probe comes when it would have come";

    Controller good({DraftMode::automatic}, costs);
    run(good, 100, 7);
    const Experience kind = good.experience();
    Controller next({DraftMode::automatic}, costs, &kind), first({DraftMode::automatic}, costs);
    EXPECT_FALSE(next.paused());
    const uint32_t drafts = run(next, 60, 0), anew = run(first, 60, 0);
    EXPECT_GT(drafts, 0u);
    EXPECT_LE(drafts, anew);
}

// ------------------------------------------------------------------------------------- suffixes

TEST(Controller, TrustsLongerMatchesMore) {
    const Costs costs = measured({1, 1.6, 2.2, 2.8, 3.4, 4, 4.6, 5.2}, 0.5);
    std::vector<uint32_t> counts;
    for (const uint32_t length : {8, 15, 16, 31, 32, 64}) {
        Controller controller({DraftMode::automatic, 7, false}, costs);
        counts.push_back(controller.plan(length, 100).count);
    }
    EXPECT_EQ(counts, (std::vector<uint32_t>{1, 1, 2, 2, 7, 7}));
}

TEST(Controller, LearnsOfEachClassOfMatchesByItself) {
    const Costs costs = linear();
    Controller controller({DraftMode::automatic, 7, false}, costs);
    uint32_t tried = 0;
    for (uint32_t i = 0; i < 100; ++i) {
        tried += step(controller, costs, 9, 0, 0).source == DraftSource::suffix;
    }
    EXPECT_LE(tried, 6u);
    EXPECT_EQ(step(controller, costs, 40, 0, 7).source, DraftSource::suffix);
    // After long enough it is tried again.
    for (uint32_t i = 0; i < 1000; ++i) {
        tried += step(controller, costs, 9, 0, 0).source == DraftSource::suffix;
    }
    EXPECT_GT(tried, 6u);
    EXPECT_LE(tried, 30u);
}

TEST(Controller, PrefersWhatIsWorthMore) {
    const Costs costs = linear();
    Controller controller({DraftMode::automatic}, costs);
    // A block of which six are accepted is worth more than a match that fails at once.
    for (uint32_t i = 0; i < 60; ++i) step(controller, costs, 0, 0.95f, 6);
    uint32_t suffixes = 0;
    for (uint32_t i = 0; i < 100; ++i) {
        suffixes += step(controller, costs, 9, 0.95f, 6).source == DraftSource::suffix;
    }
    EXPECT_EQ(suffixes, 0u);
    // But less than a long one, unless that fails too.
    for (uint32_t i = 0; i < 60; ++i) step(controller, costs, 0, 0.95f, 3);
    suffixes = 0;
    for (uint32_t i = 0; i < 100; ++i) {
        suffixes += step(controller, costs, 64, 0.95f, 7).source == DraftSource::suffix;
    }
    EXPECT_GE(suffixes, 99u);  // one step may be for the baseline
    suffixes = 0;
    for (uint32_t i = 0; i < 100; ++i) {
        suffixes += step(controller, costs, 64, 0.95f, 0).source == DraftSource::suffix;
    }
    EXPECT_LE(suffixes, 15u);
}

// -------------------------------------------------------------------------------------- in all

TEST(Controller, SameCallsSameAnswers) {
    const Costs costs = linear();
    Controller a({DraftMode::automatic}, costs);
    Controller b({DraftMode::automatic}, costs);
    for (uint32_t i = 0; i < 3000; ++i) {
        const uint32_t accepted = i / 300 % 2 == 0 ? i % 8 : 0;
        const uint32_t match = i % 50 < 10 ? 8 + i % 50 : 0;
        ASSERT_EQ(step(a, costs, match, 0.9f, accepted), step(b, costs, match, 0.9f, accepted));
    }
    EXPECT_EQ(a.counters(), b.counters());
    EXPECT_GT(a.counters().pauses, 0u);
    EXPECT_GT(a.counters().suffix_steps, 0u);
}

// A drafter that promises everything and keeps nothing, on machines where that costs most: over
// 100,000 tokens all of its trials and probes take at most 2 % of the time.
TEST(Controller, ProbesCostLittle) {
    for (const auto& [seconds, draft_seconds] :
         std::vector<std::pair<std::array<double, kRowsMax>, double>>{
             {{1, 1.4, 1.8, 2.2, 2.6, 3, 3.4, 3.8}, 0.5},
             {{1, 1.7, 2.4, 3.1, 3.8, 4.4, 5, 5.5}, 0.5},
             {{1, 2, 3, 4, 5, 6, 7, 8}, 1},
             {{1, 4, 4, 4, 4, 4, 4, 4}, 0.5}}) {
        const Costs costs = measured(seconds, draft_seconds);
        Controller controller({DraftMode::automatic}, costs);
        constexpr uint32_t kTokens = 100'000;
        double total = 0;
        double total_early = 0;  // after 3,000
        for (uint32_t token = 0; token < kTokens; ++token) {
            if (token == 3000) total_early = total;
            const Controller::Plan plan = controller.plan(0, 100);
            if (plan.source == DraftSource::none) {
                controller.observe({DraftSource::none, 0, 0, 1}, {});
                total += 1;
                continue;
            }
            const std::vector<float> confidence = sure(0.9999f);
            const uint32_t verified = controller.depth(confidence);
            const double spent = draft_seconds + seconds[verified];
            controller.observe({DraftSource::block, verified, 0, spent}, confidence);
            total += spent;
        }
        std::printf("prices to %.1f: %.2f %% over 3,000 tokens, %.2f %% over 100,000\n",
                    seconds.back(), 100 * (total_early / 3000 - 1), 100 * (total / kTokens - 1));
        EXPECT_LE(total, 1.02 * kTokens) << seconds.back();
        EXPECT_LE(total_early, 1.03 * 3000) << seconds.back();
        EXPECT_GT(controller.counters().probes, 100u);
    }
}

}  // namespace
}  // namespace tessera
