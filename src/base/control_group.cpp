#include "base/control_group.h"

#include <algorithm>
#include <fstream>
#include <string>

#include "base/memory.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

template <typename T>
void lower(std::optional<T>& limit, T value) {
    limit = limit ? std::min(*limit, value) : value;
}

std::optional<uint64_t> number_in(const fs::path& file) {
    std::ifstream stream(file);
    uint64_t value = 0;
    return stream >> value ? std::optional(value) : std::nullopt;  // absent, or the word "max"
}

void add_limits(const fs::path& group, ControlGroup& all) {
    std::ifstream cpu(group / "cpu.max");
    double quota = 0, period = 0;  // microseconds; "max 100000" has no quota
    if (cpu >> quota >> period && period > 0) lower(all.cpus, quota / period);

    const auto limit = number_in(group / "memory.max");
    if (!limit) return;
    lower(all.memory_bytes, *limit);
    const auto used = number_in(group / "memory.current");
    if (!used) return;
    const fs::path stat = group / "memory.stat";
    const uint64_t cached = number_after(stat, "active_file").value_or(0) +
                            number_after(stat, "inactive_file").value_or(0);
    const uint64_t held = *used - std::min(*used, cached);
    lower(all.memory_left, *limit - std::min(*limit, held));
}

// Below /sys/fs/cgroup; empty if the system has no version 2.
fs::path own_group(const fs::path& root) {
    std::ifstream groups(root / "proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        if (!line.starts_with("0::/")) continue;
        fs::path below;
        // Seen from inside a namespace, a group outside it begins with "..": its limits are not
        // to be seen.
        for (const fs::path& part : fs::path(line.substr(4)))
            if (part != "..") below /= part;
        return below;
    }
    return {};
}

}  // namespace

ControlGroup read_control_group(const fs::path& root) {
    const fs::path top = root / "sys/fs/cgroup";
    ControlGroup all;
    for (fs::path below = own_group(root); !below.empty(); below = below.parent_path())
        add_limits(top / below, all);
    add_limits(top, all);
    return all;
}

}  // namespace tessera
