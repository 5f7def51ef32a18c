#include "base/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string_view>

#include <fmt/format.h>
#include <unistd.h>

namespace tessera {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

uint64_t number_in(const char* path) {
    std::ifstream file(path);
    uint64_t value = 0;
    return file >> value ? value : kUnlimited;  // absent, or the word "max"
}

// The number after `key` in a file of "key number …" lines.
uint64_t number_after(const char* path, std::string_view key, uint64_t otherwise) {
    std::ifstream file(path);
    std::string word, rest;
    for (uint64_t value = 0; file >> word >> value; std::getline(file, rest)) {
        if (word == key) return value;
    }
    return otherwise;
}

uint64_t control_group_left() {
    constexpr const char* kStat = "/sys/fs/cgroup/memory.stat";
    const uint64_t limit = number_in("/sys/fs/cgroup/memory.max");
    const uint64_t used = number_in("/sys/fs/cgroup/memory.current");
    if (limit == kUnlimited || used == kUnlimited) return kUnlimited;
    // Cached file pages count as used but are given up on demand.
    const uint64_t cached =
        number_after(kStat, "active_file", 0) + number_after(kStat, "inactive_file", 0);
    const uint64_t held = used - std::min(used, cached);
    return limit - std::min(limit, held);
}

}  // namespace

uint64_t available_memory_bytes() {
    const uint64_t system_kib = number_after("/proc/meminfo", "MemAvailable:", kUnlimited >> 10);
    return std::min(system_kib << 10, control_group_left());
}

uint64_t last_cache_bytes() {
    for (const int level : {_SC_LEVEL4_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE}) {
        const long bytes = sysconf(level);
        if (bytes > 0) return static_cast<uint64_t>(bytes);
    }
    return 0;
}

std::string bytes_text(uint64_t bytes) {
    static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = static_cast<double>(bytes);
    size_t unit = 0;
    for (; value >= 1024 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
    return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

}  // namespace tessera
