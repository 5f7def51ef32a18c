// The controller in simulated environments: prices by rows, noise, and drafters good, bad and
// dishonest. Automatic is never slower than no speculation, and close to the best constant depth
// where there is one. Prints its table.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "decode/controller.h"

namespace tessera {
namespace {

constexpr uint32_t kTokens = 3000;
constexpr uint32_t kSeeds = 4;
constexpr uint32_t kDraftMax = kRowsMax - 1;

struct Machine {
    const char* what;
    std::array<double, kRowsMax> step_ms;  // by rows - 1
    double draft_ms;
};

std::vector<Machine> machines() {
    Machine flat = {"flat", {}, 0.12};
    Machine linear = {"linear", {}, 0.3};
    Machine steep = {"steep", {}, 0.4};
    for (uint32_t i = 0; i < kRowsMax; ++i) {
        flat.step_ms[i] = 1 + 0.01 * i;
        linear.step_ms[i] = 0.62 + (2.28 - 0.62) * i / 7;
        // A union of experts, 8 of 384 a row, is 70 % of a one-row step.
        steep.step_ms[i] = 0.3 + 0.7 * (384 * (1 - std::pow(1 - 8.0 / 384, i + 1))) / 8;
    }
    return {flat, linear, steep, {"stairs", {1, 1, 1, 1, 1.9, 1.9, 1.9, 1.9}, 0.15}};
}

class Random {
  public:
    explicit Random(uint32_t seed) : random_(seed) {}
    double uniform() { return static_cast<double>(random_() >> 5) / (1u << 27); }  // 32 bits drawn
    double normal() {
        return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform());
    }

  private:
    std::mt19937 random_;
};

// One-sided: a little on every pass, much on a few.
double noise(Random& random) {
    const double usual = 1 + 0.05 * std::abs(random.normal());
    return random.uniform() < 0.02 ? usual * (2 + 4 * random.uniform()) : usual;
}

double logit(double p) {
    return std::log(p / (1 - p));
}

struct Draft {
    std::array<double, kDraftMax> accepted;  // probability, given those before
    std::array<float, kDraftMax> confidence;
};

struct Text {
    const char* what;
    bool stationary;
    std::function<double(uint32_t token)> acceptance;       // of blocks, about
    std::function<double(double accepted)> confidence;      // what the drafter says of it
    std::function<uint32_t(uint32_t token)> suffix_length;  // of the match found
    double suffix_acceptance = 0;
    bool has_drafter = true;
};

double honest(double p) {
    return p;
}
uint32_t no_match(uint32_t) {
    return 0;
}
std::function<double(uint32_t)> always(double p) {
    return [p](uint32_t) { return p; };
}

std::vector<Text> texts() {
    const auto overconfident = [](double p) { return 1 - std::pow(1 - p, 4); };
    const auto boastful = [](double p) { return 0.9 + 0.1 * p; };
    const auto timid = [](double p) { return p * p * p; };
    // Half of the text is a copy, in stretches of 300 tokens; the match grows along a stretch.
    const auto copies = [](uint32_t token) {
        const uint32_t into = token % 600;
        return into < 308 ? 0 : into - 300;
    };
    const auto short_match = [](uint32_t) { return 9u; };
    return {
        {"high", true, always(0.95), honest, no_match},
        {"code", true, always(0.8), honest, no_match},
        {"prose", true, always(0.5), honest, no_match},
        {"poor", true, always(0.3), honest, no_match},
        {"hopeless", true, always(0.1), honest, no_match},
        {"code, overconfident", true, always(0.8), overconfident, no_match},
        {"prose, overconfident", true, always(0.5), overconfident, no_match},
        {"hopeless, boastful", true, always(0.1), boastful, no_match},
        {"code, timid", true, always(0.8), timid, no_match},
        {"high then hopeless", false, [](uint32_t t) { return t < 1500 ? 0.95 : 0.1; }, honest,
         no_match},
        {"hopeless then high", false, [](uint32_t t) { return t < 1500 ? 0.1 : 0.95; }, honest,
         no_match},
        {"changing every 200", false, [](uint32_t t) { return t / 200 % 2 ? 0.9 : 0.1; }, honest,
         no_match},
        {"changing, boastful", false, [](uint32_t t) { return t / 400 % 2 ? 0.9 : 0.1; }, boastful,
         no_match},
        {"copies, prose", false, always(0.5), honest, copies, 0.98},
        {"copies, hopeless", false, always(0.1), honest, copies, 0.98},
        {"copies, no drafter", false, always(0.1), honest, copies, 0.98, false},
        {"lying copies", false, always(0.1), honest, copies, 0.1},
        {"lying matches", false, always(0.1), honest, short_match, 0.15},
        {"lying matches, prose", false, always(0.5), honest, short_match, 0.15},
    };
}

Draft draft(const Text& text, uint32_t token, Random& random) {
    Draft draft;
    const double center = logit(text.acceptance(token)) + 0.8 * random.normal();
    for (uint32_t slot = 0; slot < kDraftMax; ++slot) {
        const double p = 1 / (1 + std::exp(-center - 0.8 * random.normal()));
        draft.accepted[slot] = p;
        draft.confidence[slot] = static_cast<float>(text.confidence(p));
    }
    return draft;
}

struct Decoded {
    double ms;
    Controller::Counters counters;
};

// A text of `tokens` under a controller. It sees noisy seconds; counted are the machine's prices,
// so that what is asserted is the policy's doing and not the noise's.
Decoded simulate(const Machine& machine, const Text& text, const ControllerOptions& options,
                 uint32_t tokens, uint32_t seed) {
    Costs costs;
    Controller controller(options, costs);
    Random random(seed);
    double total = 0;
    for (uint32_t token = 0; token < tokens;) {
        const uint32_t room = std::min(kDraftMax, tokens - token - 1);
        const Controller::Plan plan = controller.plan(text.suffix_length(token), room);
        Draft block{};
        std::span<const float> confidence;
        double ms = 0;
        uint32_t verified = plan.count;
        if (plan.source == DraftSource::block) {
            block = draft(text, token, random);
            confidence = std::span(block.confidence).first(plan.count);
            ms = machine.draft_ms * noise(random);
            costs.draft(1e-3 * ms);
            total += machine.draft_ms;
            verified = controller.depth(confidence);
        } else {
            block.accepted.fill(text.suffix_acceptance);
        }
        const double step_ms = machine.step_ms[verified] * noise(random);
        costs.step(verified + 1, 1e-3 * step_ms);
        ms += step_ms;
        total += machine.step_ms[verified];
        uint32_t accepted = 0;
        while (accepted < verified && random.uniform() < block.accepted[accepted]) ++accepted;
        controller.observe({plan.source, verified, accepted, 1e-3 * ms}, confidence);
        token += accepted + 1;
    }
    return {total, controller.counters()};
}

ControllerOptions options(DraftMode mode, uint32_t max_draft, const Text& text) {
    return {mode, max_draft, text.has_drafter};
}

TEST(ControllerSimulated, IsNeverSlowerAndCloseToTheBestDepth) {
    std::printf("%-8s %-22s %8s %14s %8s %8s %8s %6s %6s %6s %6s %6s %6s %6s\n", "prices", "text",
                "off t/s", "best constant", "auto t/s", "/off min", "/best", "pauses", "probes",
                "steps", "block", "suffix", "single", "tried");
    for (const Machine& machine : machines()) {
        const double off_ms = kTokens * machine.step_ms[0];
        for (const Text& text : texts()) {
            double best_ms = off_ms;
            uint32_t best_depth = 0;
            for (uint32_t depth = 1; depth <= kDraftMax && text.has_drafter; ++depth) {
                double ms = 0;
                for (uint32_t seed = 0; seed < kSeeds; ++seed) {
                    ms += simulate(machine, text, options(DraftMode::fixed, depth, text), kTokens,
                                   seed)
                              .ms;
                }
                if (ms / kSeeds < best_ms) {
                    best_ms = ms / kSeeds;
                    best_depth = depth;
                }
            }
            double sum_ms = 0;
            double worst_ms = 0;
            Controller::Counters counters;
            for (uint32_t seed = 0; seed < kSeeds; ++seed) {
                const Decoded run =
                    simulate(machine, text, options(DraftMode::automatic, kDraftMax, text), kTokens,
                             100 + seed);
                sum_ms += run.ms;
                worst_ms = std::max(worst_ms, run.ms);
                counters = run.counters;
            }
            const double mean_ms = sum_ms / kSeeds;
            const auto count = [](uint64_t n) { return static_cast<unsigned long long>(n); };
            const auto per_second = [](double ms) { return 1e3 * kTokens / ms; };
            std::printf(
                "%-8s %-22s %8.0f %10.0f (%u) %8.0f %8.3f %8.3f %6llu %6llu %6llu %6llu %6llu "
                "%6llu %6llu\n",
                machine.what, text.what, per_second(off_ms), per_second(best_ms), best_depth,
                per_second(mean_ms), off_ms / worst_ms, best_ms / mean_ms, count(counters.pauses),
                count(counters.probes), count(counters.steps), count(counters.block_steps),
                count(counters.suffix_steps), count(counters.baseline_steps),
                count(counters.explored_steps));
            EXPECT_GE(off_ms / worst_ms, 0.97) << machine.what << ", " << text.what;
            if (text.stationary) {
                EXPECT_GE(best_ms / mean_ms, 0.93) << machine.what << ", " << text.what;
            }
        }
    }
}

}  // namespace
}  // namespace tessera
