// What `tessera doctor` finds: facts for machines, and for people what each costs or allows.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace tessera {

enum class Verdict : uint8_t { kFine, kNotable, kBroken };

struct Finding {
    std::string topic, found, means;
    Verdict verdict = Verdict::kFine;
    std::string fix;  // of what is not fine
};

struct Examination {
    std::vector<Finding> findings;
    nlohmann::ordered_json facts = nlohmann::ordered_json::object();

    void add(Finding finding) { findings.push_back(std::move(finding)); }
    // Nothing essential is missing.
    bool healthy() const;
};

// What the rest needs to know of the machine.
struct MachineFound {
    uint32_t threads = 1;
    uint64_t memory_bytes = 0;    // that may be taken now
    double bytes_per_second = 0;  // read from memory by all threads
};

// Processor, cores, limits, memory and its bandwidth, cards, open files. Takes about a second.
MachineFound examine_machine(Examination& all);

// Bytes a second at which `threads` read memory of this size over and over; in a small one they
// read the last cache.
double measured_bandwidth(uint64_t bytes, uint32_t threads);

// Whether the checkpoint is whole and fits, and the least time of a token; the published models
// beside it, by their shapes alone. `folder`: none if there is no model at all.
void examine_models(const std::optional<std::filesystem::path>& folder, const MachineFound& machine,
                    Examination& all);

// Asks /health of a server at "http://host:port".
void examine_server(const std::string& url, Examination& all);

}  // namespace tessera
