// What `tessera bench speculation` found, as tables, JSON and bars.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "report.h"
#include "suites.h"
#include "written.h"

namespace tessera {

struct SpeculationMode {
    std::string name;
    Speculation speculation;
};

// One suite at one temperature. The first mode is the standard of the others if it is "off".
struct Measured {
    const Suite* suite;
    float temperature;
    std::vector<SpeculationMode> modes;
    std::vector<std::vector<std::vector<Written>>> runs;  // mode, repeat, prompt
};

void print_speculation(const std::vector<Measured>& all);

// By rows of a step: its time without drafting, and the experts it meets.
void print_costs(const std::vector<Measured>& all);

// FNV-1a over the hashes of the texts, in their order; the same for every mode.
uint64_t hash_of(const std::vector<Measured>& all);

nlohmann::json speculation_json(const std::vector<Measured>& all);
Bars speculation_bars(const std::string& model, const std::vector<Measured>& all);

}  // namespace tessera
