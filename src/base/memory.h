// How much memory this process can still take.
#pragma once

#include <cstdint>
#include <string>

namespace tessera {

// Bytes: the smaller of what the system has available and what the control group still allows.
uint64_t available_memory_bytes();

// Bytes of the last cache, which all cores share; 0 if the system does not tell.
uint64_t last_cache_bytes();

// "46.5 MiB", "569.8 GB"-style binary units with one decimal.
std::string bytes_text(uint64_t bytes);

}  // namespace tessera
