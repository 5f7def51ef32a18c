// A text written by a session, with a record of every step: what the door's sums over a session
// cannot tell apart.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tessera/session.h"

namespace tessera {

enum class Drafts : uint8_t { none, block, copied };

struct WrittenStep {
    Drafts drafts;
    uint32_t verified, accepted;  // drafts
    double ms, draft_ms;          // of which the drafting
    double experts;               // distinct, a layer of experts
    uint32_t rows() const { return verified + 1; }
};

struct Written {
    std::vector<Token> tokens;
    uint64_t hash = 0;          // of the session's Stats
    uint32_t chosen = 0;        // by the steps: more than what was asked for, but for the first
    double prompt_seconds = 0;  // reading the prompt
    double seconds = 0;         // of the steps by the wall, a drafter's catching up included
    std::vector<WrittenStep> steps;

    double tokens_per_second() const { return chosen / seconds; }
};

// Continues `prompt` by `tokens` tokens, 2 or more; the end of a text is a token like any other.
Written write_text(const Model& model, const Sampling& sampling, const Speculation& speculation,
                   std::span<const Token> prompt, uint32_t tokens);

}  // namespace tessera
