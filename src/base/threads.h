// Work split over threads, for loading and tools. The decoding runtime has its own workers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace tessera {

// Threads worth having at once: physical cores that the calling thread may use, no more than the
// control group gives time to, at least 1.
uint32_t available_threads();

// Calls task(i) for every i below `count`, each once, on `threads` threads, the calling one among
// them. The first exception is thrown again here after all threads stopped; later tasks are
// skipped.
void parallel_for(size_t count, uint32_t threads, const std::function<void(size_t)>& task);

}  // namespace tessera
