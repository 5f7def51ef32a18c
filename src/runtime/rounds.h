// Rounds: drafting a block, verifying it and keeping what stands, over and over, by a machine that
// chooses tokens itself and tells after each round what became of it. What it is asked, what it
// says, and what it and whoever follows it reckon alike. Plain structs: a card reads them.
#pragma once

#include <cstdint>

#include "tiles/depth.h"

namespace tessera {

inline constexpr uint32_t kStopTokensMax = 8;

// A run of rounds of one text. None begins behind a token that stops, nor when `tokens_max` have
// been chosen, nor where the context has no room for another token.
struct RoundsAsk {
    // A token is the argmax of its logits, divided by the temperature, and the noise of its seed
    // and position, among those that top-p and min-p leave (decode/sample.h); at temperature 0 of
    // its logits.
    float temperature = 0;
    float top_p = 1, min_p = 0;
    uint64_t seed = 0;
    uint32_t drafts = 0;       // a round, below the drafter's block; 0: nothing is drafted
    uint32_t first_depth = 0;  // of the first round, if not 0: whatever the policy says
    DepthPolicy depth;         // how many of them are verified
    uint32_t tokens_max = 1;
    uint32_t context = 0;  // tokens that the text can have
    uint32_t stops = 0;
    uint32_t stop[kStopTokensMax] = {};
};

// Where a text stands between rounds.
struct Standing {
    uint32_t anchor;   // its newest token, not read yet
    uint32_t length;   // tokens before it: all were read
    uint32_t drafted;  // of those, the drafter has taken in
    uint32_t chosen;   // since the run began
};

// What became of a round.
struct Round {
    uint32_t tokens[kDepthRows];   // the drafts that stood, and the model's own choice behind them
    uint32_t count;                // of those
    uint32_t drafted;              // tokens of the block: 0 where none was drafted
    uint32_t verified;             // of them
    uint32_t last;                 // whether no other follows
    float confidence[kDepthRows];  // [drafted]
    uint32_t live_experts;         // of the model's step, summed over layers
    uint32_t draft_ns, verify_ns;  // what block and step took, choosing included
};

// Drafts of the next round. Each that stands is a token, and so is the choice behind them.
constexpr uint32_t drafts_of(const RoundsAsk& ask, const Standing& at) {
    const uint32_t room = ask.context - at.length - 1;
    return ask.drafts < room ? ask.drafts : room - 1;
}

constexpr uint32_t depth_of(const RoundsAsk& ask, const Standing& at, const float* confidence,
                            uint32_t drafts) {
    if (at.chosen == 0 && ask.first_depth > 0)
        return ask.first_depth < drafts ? ask.first_depth : drafts;
    return depth_of(ask.depth, confidence, drafts);
}

// Chosen tokens of a round, of `verified` + 1 rows that hold the anchor and the drafts: up to the
// first choice that the next row does not have.
constexpr uint32_t tokens_of(const uint32_t* rows, const uint32_t* choices, uint32_t verified) {
    uint32_t count = 1;
    while (count <= verified && rows[count] == choices[count - 1]) ++count;
    return count;
}

// Moves on by the round, and says whether another follows.
constexpr bool move_on(const RoundsAsk& ask, const Round& round, Standing& at) {
    if (round.drafted > 0) at.drafted = at.length;
    at.length += round.count;
    at.anchor = round.tokens[round.count - 1];
    at.chosen += round.count;
    bool goes_on = at.chosen < ask.tokens_max && at.length + 1 < ask.context;
    for (uint32_t i = 0; i < round.count; ++i)
        for (uint32_t stop = 0; stop < ask.stops; ++stop)
            goes_on = goes_on && round.tokens[i] != ask.stop[stop];
    return goes_on;
}

}  // namespace tessera
