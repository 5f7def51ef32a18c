// How the next token is chosen from the model's logits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace tessera {

struct Sampling {
    float temperature = 0.0f;  // 0: greedy, the most likely token, and the rest is ignored
    uint32_t top_k = 0;        // only the k most likely; 0: all
    float top_p = 1.0f;        // only the most likely tokens that together reach this probability
    float min_p = 0.0f;        // only tokens at least this times as likely as the most likely one
    uint64_t seed = 0;  // same seed, same text: noise depends on (seed, position, token) alone
    // Taken from the logit of a token that the answer already has: once, and for each time. -2
    // to 2.
    float presence_penalty = 0.0f, frequency_penalty = 0.0f;

    // What is wrong with it, in a sentence naming the field, its value and the range; none if fine.
    std::optional<std::string> problem() const;
};

}  // namespace tessera
