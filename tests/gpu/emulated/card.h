// The emulated card, for tests that want another than the usual.
#pragma once

#include <cstdint>

namespace emulated {

struct Settings {
    uint32_t multiprocessors = 3;  // few, so that shares are uneven and the host's time short
    uint32_t shared_bytes = 227 * 1024;
    uint64_t memory_bytes = 4ull << 30;
    // Of the order of turns and of bulk copies; 0: one after another.
    uint64_t seed = 0;
};

// Of launches from here on.
Settings& settings();

}  // namespace emulated
