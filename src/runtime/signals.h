// The two primitives that order tiles: signal and wait. No other code of the CPU runtime touches
// memory order.
#pragma once

#include <atomic>
#include <cstdint>

namespace tessera {

// One event: counts up for ever. On a cache line of its own, since many workers watch it.
struct alignas(64) Event {
    std::atomic<uint64_t> count = 0;
};

// Everything this worker wrote before is seen by whoever waits for the count.
inline void signal(Event& event) {
    event.count.fetch_add(1, std::memory_order_release);
}

inline bool has(const Event& event, uint64_t count) {
    return event.count.load(std::memory_order_acquire) >= count;
}

// Gives the core's other thread a moment.
inline void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Returns once the event has `count`. Spins, then yields: a step is too short to sleep in.
void wait(const Event& event, uint64_t count);

}  // namespace tessera
