// How likely a token was, and which others were: what APIs call logprobs.
#pragma once

#include <array>
#include <cstdint>

namespace tessera {

struct Likelihood {
    static constexpr uint32_t kTopMax = 20;

    // Natural logarithms of the model's own distribution: at temperature 1, before masks and
    // penalties.
    struct Choice {
        uint32_t token = 0;
        float log_probability = 0;
    };
    float log_probability = 0;  // of the token that was chosen
    uint32_t top_count = 0;
    std::array<Choice, kTopMax> top{};  // the most likely first; of equals the lower id
};

}  // namespace tessera
