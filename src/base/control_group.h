// What the control group (version 2) of this process allows: containers and service managers set
// their limits there, and the rest of the system does not show them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace tessera {

struct ControlGroup {
    std::optional<double> cpus;            // CPU seconds a second; none: as many as there are
    std::optional<uint64_t> memory_bytes;  // the smallest limit; none: what the system has
    std::optional<uint64_t> memory_left;   // until a limit; cached file pages count as free
};

// The group that /proc/self/cgroup names and all groups around it: the tightest limit holds. What
// cannot be read limits nothing. `root`: of the file system, for tests.
ControlGroup read_control_group(const std::filesystem::path& root = "/");

}  // namespace tessera
