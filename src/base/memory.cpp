#include "base/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>

#include <fmt/format.h>
#include <unistd.h>

#include "base/control_group.h"

namespace tessera {

std::optional<uint64_t> number_after(const std::filesystem::path& file, std::string_view key) {
    std::ifstream stream(file);
    std::string word, rest;
    for (uint64_t value = 0; stream >> word >> value; std::getline(stream, rest)) {
        if (word == key) return value;
    }
    return std::nullopt;
}

SystemMemory system_memory(const std::filesystem::path& root) {
    constexpr uint64_t kUnknownKib = std::numeric_limits<uint64_t>::max() >> 10;
    const std::filesystem::path file = root / "proc/meminfo";
    return {number_after(file, "MemTotal:").value_or(kUnknownKib) << 10,
            number_after(file, "MemAvailable:").value_or(kUnknownKib) << 10};
}

uint64_t available_memory_bytes() {
    const uint64_t system = system_memory().available_bytes;
    return std::min(system, read_control_group().memory_left.value_or(system));
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
