// The card's memory, which is the host's.
#pragma once

#include <cstdint>

namespace emulated {

// Whether all of it lies in one allocation.
bool is_device_memory(const void* at, uint64_t bytes);

}  // namespace emulated
