// How many of a drafted block's tokens are worth verifying: the rule, for the host and the card.
// Who uses it knows where the numbers come from (decode/controller.h).
#pragma once

#include <array>
#include <cstdint>

namespace tessera {

inline constexpr uint32_t kDepthRows = 8;  // of a step: one, and what is verified

// Upper edges of bins of confidence: even below, finer towards 1, where most of a good drafter's
// tokens are.
inline constexpr std::array<float, 16> kConfidenceEdges = {
    0.05f, 0.1f, 0.2f,  0.3f,   0.4f,  0.5f,   0.6f,   0.7f,
    0.8f,  0.9f, 0.95f, 0.975f, 0.99f, 0.995f, 0.999f, 1.0f};

constexpr uint32_t confidence_bin(float confidence) {
    // Its own copy: the host's array has no address on a card, where reading it compiled to a trap.
    constexpr auto edges = kConfidenceEdges;
    uint32_t bin = 0;
    for (uint32_t i = 0; i + 1 < edges.size(); ++i) bin += confidence > edges[i];
    return bin;  // what is no number goes to the lowest
}

// A step is worth its expected tokens minus rate * its seconds.
struct DepthPolicy {
    bool whole = true;  // all that was drafted, whatever it is worth
    uint32_t least = 0;
    double rate = 0;                                       // tokens a second, anyway
    std::array<double, kDepthRows> seconds{};              // of a step that verifies so many
    std::array<double, kConfidenceEdges.size()> stands{};  // a draft, by its confidence's bin

    constexpr double worth(double tokens, uint32_t verified) const {
        return tokens - rate * seconds[verified];
    }
};

// Of `count` drafts, below kDepthRows. `confidence`: the probability that the drafter gave to each.
// Every depth is looked at: prices may be flat and then steep, or steep and then flat, and the
// first depth that does not pay may hide one that does.
constexpr uint32_t depth_of(const DepthPolicy& policy, const float* confidence, uint32_t count) {
    if (policy.whole) return count;
    uint32_t best = 0;
    double best_worth = policy.worth(1, 0), reached = 1, tokens = 1;
    for (uint32_t depth = 1; depth <= count; ++depth) {
        reached *= policy.stands[confidence_bin(confidence[depth - 1])];
        tokens += reached;
        const double worth = policy.worth(tokens, depth);
        if (worth > best_worth) {
            best = depth;
            best_worth = worth;
        }
    }
    const uint32_t least = policy.least < count ? policy.least : count;
    return best < least ? least : best;
}

}  // namespace tessera
