// How much memory this process can still take.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace tessera {

// What the system as a whole says of its memory; the largest numbers if it says nothing. `root`: of
// the file system, for tests.
struct SystemMemory {
    uint64_t total_bytes, available_bytes;
};
SystemMemory system_memory(const std::filesystem::path& root = "/");

// The number after `key` in a file of "key number ..." lines.
std::optional<uint64_t> number_after(const std::filesystem::path& file, std::string_view key);

// Bytes: the smaller of what the system has available and what the control group still allows.
uint64_t available_memory_bytes();

// Bytes of the last cache, which all cores share; 0 if the system does not tell.
uint64_t last_cache_bytes();

// "46.5 MiB", "569.8 GB"-style binary units with one decimal.
std::string bytes_text(uint64_t bytes);

}  // namespace tessera
