// How tokens come about: what was drafted for a step of the model, and what of it the model agreed
// to. Counts only; has not heard of text.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera {

// One step of one text.
struct Round {
    enum class Drafts : uint8_t {
        kNone,
        kDrafter,
        kSuffix,  // copied from the text
        kForced,  // what a constraint demands
    };

    uint32_t passes = 0;  // of the model: none for the first token, whose logits the prompt left
    Drafts drafts = Drafts::kNone;
    uint32_t verified = 0, accepted = 0;  // drafts that the model read, and that stood
};

// Where a token is from.
enum class Origin : uint8_t {
    kModel,       // the model's own, nothing was drafted
    kDrafter,     // a draft that stood
    kSuffix,      // the same, copied from the text
    kForced,      // the same, demanded by a constraint
    kCorrection,  // the model's own, where it refused a draft
    kBonus,       // the model's own, after drafts that all stood
};

// Of the token at `place` among those that the round gave.
constexpr Origin origin_of(const Round& round, size_t place) {
    if (place < round.accepted)
        return round.drafts == Round::Drafts::kSuffix   ? Origin::kSuffix
               : round.drafts == Round::Drafts::kForced ? Origin::kForced
                                                        : Origin::kDrafter;
    if (round.verified == 0) return Origin::kModel;
    return round.accepted < round.verified ? Origin::kCorrection : Origin::kBonus;
}

}  // namespace tessera
