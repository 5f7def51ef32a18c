// What a session did, measured where it happened.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace tessera {

struct Stats {
    uint32_t prompt_tokens = 0;
    double prompt_seconds = 0;
    uint32_t tokens = 0;  // generated
    uint32_t steps = 0;   // passes of the target that generated them
    double seconds = 0;   // spent in those passes and in choosing
    double bytes = 0;  // of weights and cache that those passes read, as the checkpoint stores them
    double experts = 0;  // distinct ones, a pass and layer of experts on average; 0: not counted
    double read_bandwidth = 0;  // bytes a second that the machine can read; 0: not measured
    // Speculation: steps with a drafted block, with drafts copied from the text itself, and with
    // drafts that a constraint demands; by slot, how often a draft was verified, and stood.
    uint32_t drafted = 0, copied = 0, forced = 0;
    std::array<uint32_t, 7> verified{}, accepted{};
    double draft_seconds = 0;            // of `seconds`
    uint64_t hash = 0xcbf29ce484222325;  // FNV-1a over the generated ids, little-endian u32

    double tokens_per_second() const { return seconds > 0 ? tokens / seconds : 0; }
    double tokens_per_step() const { return steps > 0 ? 1.0 * tokens / steps : 0; }  // τ
    double bytes_per_second() const { return seconds > 0 ? bytes / seconds : 0; }
    double ms_per_step() const { return steps > 0 ? 1e3 * seconds / steps : 0; }
    double ms_per_draft() const { return drafted > 0 ? 1e3 * draft_seconds / drafted : 0; }

    // One line for people: rates, τ, milliseconds a step, what was read and the hash.
    std::string line() const;
};

}  // namespace tessera
