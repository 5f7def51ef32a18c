// The least time that a step can take on a machine: bytes at its read bandwidth, and exchanges.
// From a shape alone; needs no weights.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "model/traffic.h"

namespace tessera {

struct MachineSpec {
    std::string name;
    double bytes_per_second;  // read from memory, measured, of one rank
    double exchange_seconds;  // of one sum over all ranks
};

// "h200" and "b200", by what was measured on them; none for other names.
std::optional<MachineSpec> known_machine(std::string_view name);

// {"name": …, "read_gb_per_second": …, "exchange_us": …}. Throws Error naming `source`.
MachineSpec parse_machine(const Json& json, std::string_view source);

struct Floor {
    Traffic traffic;     // of one rank
    uint32_t exchanges;  // of a verify step and, with a drafter, its draft
    double read_seconds;
    double seconds;  // with the exchanges

    double tokens_per_second(double tokens_per_step) const { return tokens_per_step / seconds; }
};

// With a drafter, the step includes a draft: its weights and the head once more, in equal parts.
Floor floor_of(const Shape& shape, const std::optional<DrafterShape>& drafter,
               const TrafficCase& at, const MachineSpec& machine);

}  // namespace tessera
