// Whether tokens are drafted before the model says them. It changes how fast a text comes, never
// which: the text of a seed is the same token for token.
#pragma once

#include <cstdint>

namespace tessera {

enum class Speculate : uint8_t {
    kAuto,   // as deep as pays at the moment, measured; not at all where nothing does
    kOff,    // one token a step; nothing is kept for a drafter
    kFixed,  // always max_draft tokens of the drafter, whether that pays or not: for measurements
};

struct Speculation {
    Speculate mode = Speculate::kAuto;
    uint32_t max_draft = 7;  // tokens drafted for one step at most, 1 to 7
};

}  // namespace tessera
