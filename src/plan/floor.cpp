#include "plan/floor.h"

#include "base/error.h"
#include "model/keys.h"

namespace tessera {

std::optional<MachineSpec> known_machine(std::string_view name) {
    // Read-only streaming as measured, not the data sheet's figure; an exchange of eight ranks
    // over NVLink.
    if (name == "h200") return MachineSpec{"H200", 4.3e12, 3e-6};
    if (name == "b200") return MachineSpec{"B200", 6.8e12, 3e-6};
    return std::nullopt;
}

MachineSpec parse_machine(const Json& json, std::string_view source) {
    const Keys keys(json, source);
    return {keys.has("name") ? keys.text("name") : std::string(source),
            1e9 * double{keys.real("read_gb_per_second", 1e-3, 1e9)},
            1e-6 * double{keys.has("exchange_us") ? keys.real("exchange_us", 0, 1e6) : 0}};
}

Floor floor_of(const Shape& shape, const std::optional<DrafterShape>& drafter,
               const TrafficCase& at, const MachineSpec& machine) {
    Floor floor{};
    floor.traffic = step_traffic(shape, at);
    if (at.ranks > 1) floor.exchanges = 2 * shape.layers + 1;  // the last for the head
    if (drafter) {
        floor.traffic.drafter = drafter_bytes(*drafter) / at.ranks + floor.traffic.head;
        if (at.ranks > 1) floor.exchanges += 2 * drafter->layers + 1;
    }
    floor.read_seconds = floor.traffic.total() / machine.bytes_per_second;
    floor.seconds = floor.read_seconds + floor.exchanges * machine.exchange_seconds;
    return floor;
}

}  // namespace tessera
