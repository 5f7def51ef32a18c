// Sampling as an argmax over shared noise: masks on small tables, the limits of temperature, and
// that the choice follows the distribution.
#include "decode/sample.h"

#include <cmath>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tessera {
namespace {

using testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> logs(const std::vector<double>& probabilities) {
    std::vector<float> logits;
    for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
    return logits;
}

uint32_t choose(const Sampling& sampling, const std::vector<float>& logits, uint64_t position) {
    return Sampler(sampling, static_cast<uint32_t>(logits.size())).choose(logits, position);
}

// -------------------------------------------------------------------------------------- greedy

struct Best {
    std::vector<float> logits;
    uint32_t token;
};

TEST(Greedy, TakesTheBestAndOfTiesTheLowest) {
    for (const Best& best : std::vector<Best>{{{1}, 0},
                                              {{1, 3, 2}, 1},
                                              {{-3, -1, -2}, 1},
                                              {{5, 5, 5}, 0},
                                              {{1, 7, 2, 7, 7}, 1},
                                              {{-0.0f, 0.0f}, 0},
                                              {{-kInfinity, -1e30f}, 1},
                                              {{-kInfinity, -kInfinity}, 0}}) {
        for (const uint64_t seed : {0, 1, 2}) {
            // Greedy ignores the masks and the seed.
            const Sampling sampling{0, 1, 0.1f, 1, seed};
            EXPECT_EQ(choose(sampling, best.logits, seed), best.token);
            EXPECT_EQ(choose({}, best.logits, 0), best.token);
        }
    }
}

TEST(Temperature, TowardsZeroIsGreedy) {
    const std::vector<std::vector<float>> table = {
        {1, 3, 2}, {-3, -1, -2}, {5, 10, 9.5f}, {-30, -20.5f, -20}, {0, 1e-3f}};
    for (const std::vector<float>& logits : table) {
        const uint32_t best = choose({}, logits, 0);
        // Down to the smallest float, where a logit over the temperature is no longer finite.
        for (const float temperature : {1e-6f, 1e-20f, 1e-37f, 1e-38f, 1e-45f}) {
            for (uint64_t position = 0; position < 50; ++position) {
                EXPECT_EQ(choose({temperature}, logits, position), best) << temperature;
                EXPECT_EQ(choose({temperature, 2, 0.9f, 0.1f}, logits, position), best);
            }
        }
    }
}

// --------------------------------------------------------------------------------------- masks

struct Mask {
    const char* what;
    std::vector<double> probabilities;
    Sampling sampling;
    std::set<uint32_t> kept;
};

TEST(Masks, KeepWhatTheyShould) {
    const std::vector<double> p = {0.2, 0.4, 0.1, 0.3};
    const std::vector<double> ties = {0.1, 0.3, 0.3, 0.3};
    const std::vector<double> zeros = {0.5, 0, 0.5, 0};
    for (const Mask& mask :
         std::vector<Mask>{{"none", p, {1}, {0, 1, 2, 3}},
                           {"top-k 1", p, {1, 1}, {1}},
                           {"top-k 2", p, {1, 2}, {1, 3}},
                           {"top-k of all", p, {1, 4}, {0, 1, 2, 3}},
                           {"top-k of more", p, {1, 1u << 31}, {0, 1, 2, 3}},
                           {"top-p within the first", p, {1, 0, 0.35f}, {1}},
                           {"top-p tiny", p, {1, 0, 1e-6f}, {1}},
                           {"top-p in the second", p, {1, 0, 0.5f}, {1, 3}},
                           {"top-p in the last", p, {1, 0, 0.95f}, {0, 1, 2, 3}},
                           {"top-p of what top-k left: 0.75 of 0.9", p, {1, 3, 0.75f}, {1, 3}},
                           {"top-p of what top-k left: 0.8 of 0.9", p, {1, 3, 0.8f}, {0, 1, 3}},
                           {"min-p", p, {1, 0, 1, 0.6f}, {1, 3}},
                           {"min-p 1", p, {1, 0, 1, 1}, {1}},
                           {"min-p tiny", p, {1, 0, 1, 1e-6f}, {0, 1, 2, 3}},
                           {"min-p after top-k", p, {1, 3, 1, 0.4f}, {0, 1, 3}},
                           {"all three", p, {1, 3, 0.95f, 0.6f}, {1, 3}},
                           {"top-p is of the tempered ones", p, {0.25f, 0, 0.7f}, {1}},
                           {"min-p is of the tempered ones", p, {2, 0, 1, 0.6f}, {0, 1, 3}},
                           {"ties stay together: top-k", ties, {1, 2}, {1, 2, 3}},
                           {"ties stay together: top-p", ties, {1, 0, 0.2f}, {1, 2, 3}},
                           {"zeros are never chosen", zeros, {1}, {0, 2}},
                           {"zeros within top-k", zeros, {1, 3}, {0, 2}},
                           {"one token", {1}, {1, 1, 0.5f, 0.5f}, {0}}}) {
        const std::vector<float> logits = logs(mask.probabilities);
        Sampler sampler(mask.sampling, static_cast<uint32_t>(logits.size()));
        std::set<uint32_t> chosen;
        for (uint64_t position = 0; position < 2000; ++position) {
            chosen.insert(sampler.choose(logits, position));
        }
        EXPECT_EQ(chosen, mask.kept) << mask.what;
    }
}

// As narrow as masks get, exactly the best is left.
TEST(Masks, NeverExcludeTheBest) {
    for (uint64_t round = 0; round < 200; ++round) {
        std::vector<float> logits(50);
        for (uint32_t i = 0; i < 50; ++i) logits[i] = 3 * gumbel_noise(round, 7, i);
        const uint32_t best = choose({}, logits, 0);
        for (const Sampling& narrow : {Sampling{1, 1}, Sampling{1, 0, 1e-30f}, Sampling{1, 0, 1, 1},
                                       Sampling{100, 1, 1e-30f, 1}}) {
            EXPECT_EQ(choose(narrow, logits, round), best);
        }
    }
}

// ---------------------------------------------------------------------------- the distribution

// Sum over tokens of (observed - expected)^2 / expected.
double chi_square(const std::vector<float>& logits, const Sampling& sampling,
                  const std::vector<double>& probabilities, uint32_t draws) {
    std::vector<uint32_t> seen(logits.size());
    Sampler sampler(sampling, static_cast<uint32_t>(logits.size()));
    for (uint64_t position = 0; position < draws; ++position) {
        ++seen[sampler.choose(logits, position)];
    }
    double sum = 0;
    for (size_t i = 0; i < seen.size(); ++i) {
        const double expected = probabilities[i] * draws;
        if (expected > 0) {
            sum += std::pow(seen[i] - expected, 2) / expected;
        } else {
            EXPECT_EQ(seen[i], 0u) << i;
        }
    }
    return sum;
}

// 29.9 is the 10^-4 quantile of chi-square with 7 degrees of freedom; the draws are fixed.
TEST(Distribution, FollowsTheSoftmax) {
    constexpr uint32_t kDraws = 200'000;
    const std::vector<double> p = {0.3, 0.01, 0.19, 0.05, 0.25, 0.1, 0.08, 0.02};
    EXPECT_LT(chi_square(logs(p), {1, 0, 1, 0, 42}, p, kDraws), 29.9);
    EXPECT_LT(chi_square(logs(p), {1, 0, 1, 0, UINT64_MAX}, p, kDraws), 29.9);

    std::vector<double> flat;  // p^(1/2), as temperature 2 has it
    double total = 0;
    for (const double one : p) total += std::sqrt(one);
    for (const double one : p) flat.push_back(std::sqrt(one) / total);
    EXPECT_LT(chi_square(logs(p), {2, 0, 1, 0, 42}, flat, kDraws), 29.9);

    const std::vector<double> three = {0.3 / 0.74, 0, 0.19 / 0.74, 0, 0.25 / 0.74, 0, 0, 0};
    EXPECT_LT(chi_square(logs(p), {1, 3, 1, 0, 42}, three, kDraws), 29.9);
}

// Seeds are as good a source as positions: neighbouring ones do not repeat each other.
TEST(Distribution, AlsoFollowsItOverSeeds) {
    const std::vector<double> p = {0.5, 0.3, 0.2};
    const std::vector<float> logits = logs(p);
    std::vector<double> seen(3);
    constexpr uint32_t kSeeds = 50'000;
    for (uint64_t seed = 0; seed < kSeeds; ++seed) ++seen[choose({1, 0, 1, 0, seed}, logits, 5)];
    double sum = 0;
    for (size_t i = 0; i < 3; ++i) sum += std::pow(seen[i] - p[i] * kSeeds, 2) / (p[i] * kSeeds);
    EXPECT_LT(sum, 18.4);  // 10^-4, 2 degrees of freedom
}

TEST(Noise, DependsOnSeedPositionAndTokenAlone) {
    const std::vector<float> logits(1000, 0.0f);
    Sampler forwards({1, 0, 1, 0, 9}, 1000), backwards({1, 0, 1, 0, 9}, 1000);
    std::vector<uint32_t> text(64), again(64);
    for (size_t i = 0; i < 64; ++i) text[i] = forwards.choose(logits, i);
    for (size_t i = 64; i-- > 0;) again[i] = backwards.choose(logits, i);
    EXPECT_EQ(text, again);
    EXPECT_GT(std::set(text.begin(), text.end()).size(), 50u);
    Sampler other({1, 0, 1, 0, 10}, 1000);
    uint32_t same = 0;
    for (size_t i = 0; i < 64; ++i) same += other.choose(logits, i) == text[i];
    EXPECT_LT(same, 4u);
}

// The positions at which the hash of (seed 0, token 0) is all ones and all zeros.
TEST(Noise, IsFiniteAtTheEndsOfTheHash) {
    EXPECT_LT(gumbel_noise(0, 0xc5e78f5c31406598, 0), 37.0f);
    EXPECT_GT(gumbel_noise(0, 0xc5e78f5c31406598, 0), 36.0f);
    EXPECT_GT(gumbel_noise(0, 0x051c32ed032292ae, 0), -3.7f);
    EXPECT_LT(gumbel_noise(0, 0x051c32ed032292ae, 0), -3.5f);
}

// ------------------------------------------------------------------------------------- problems

struct Problem {
    Sampling sampling;
    const char* words;  // empty: fine
};

TEST(Sampling, ProblemNamesFieldValueAndRange) {
    for (const Problem& known :
         std::vector<Problem>{{{}, ""},
                              {{1, 0, 1, 0, 0}, ""},
                              {{100, UINT32_MAX, 1e-45f, 1, UINT64_MAX}, ""},
                              {{1e-45f}, ""},
                              {{-0.0f}, ""},
                              {{-1}, "temperature is -1, expected 0 (greedy) to 100"},
                              {{100.5f}, "temperature is 100.5, expected"},
                              {{kInfinity}, "temperature is inf"},
                              {{kNan}, "temperature is nan"},
                              {{1, 0, 0}, "top-p is 0, expected more than 0, at most 1"},
                              {{1, 0, -0.5f}, "top-p is -0.5"},
                              {{1, 0, 1.5f}, "top-p is 1.5"},
                              {{1, 0, kNan}, "top-p is nan"},
                              {{1, 0, 1, -0.25f}, "min-p is -0.25, expected 0 to 1"},
                              {{1, 0, 1, 1.25f}, "min-p is 1.25"},
                              {{1, 0, 1, kNan}, "min-p is nan"},
                              {{0, 0, 2}, "top-p is 2"}}) {  // greedy, yet a mistake worth saying
        const std::optional<std::string> problem = known.sampling.problem();
        EXPECT_EQ(problem.has_value(), *known.words != 0) << problem.value_or("");
        EXPECT_THAT(problem.value_or(""), HasSubstr(known.words));
    }
}

}  // namespace
}  // namespace tessera
