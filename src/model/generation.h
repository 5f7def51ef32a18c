// generation_config.json: which tokens end an answer, and how the makers would sample.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace tessera {

struct Generation {
    std::vector<uint32_t> end_tokens;  // empty if the file does not say
    float temperature = 0;             // 0 unless do_sample
    float top_p = 1;
    uint32_t top_k = 0;  // 0: all
};

// Throws Error naming `source`, the key and the value. Unknown keys are left alone.
Generation parse_generation(const Json& config, uint32_t vocab, std::string_view source);

}  // namespace tessera
