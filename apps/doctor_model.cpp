// Which models fit this machine, and the least time of a token: bytes of a step over the bandwidth
// that was measured.
#include <fmt/format.h>

#include "base/error.h"
#include "base/memory.h"
#include "checkpoint/checkpoint.h"
#include "model/published.h"
#include "plan/floor.h"
#include "weights/bind.h"
#include "weights/pack.h"

#include "doctor.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPublished[] = {"mimo-v2-flash", "mimo-v2.5-pro"};
constexpr double kContext = 1024;  // tokens before the step whose floor is told

uint64_t sum_of(const std::vector<RequiredTensor>& tensors) {
    uint64_t bytes = 0;
    for (const RequiredTensor& one : tensors) bytes += one.bytes();
    return bytes;
}

// Of a step of one row, without drafts.
double floor_ms(const Shape& shape, double bytes_per_second) {
    const MachineSpec here{"here", bytes_per_second, 0};
    return 1e3 * floor_of(shape, std::nullopt, {1, kContext, 0, 1}, here).seconds;
}

std::string floor_text(double ms) {
    return fmt::format("without drafts a token takes {:.2f} ms at least: {:.0f} a second at most",
                       ms, 1e3 / ms);
}

// What Model::load would take, and what it would read.
struct Needs {
    Shape shape;
    uint64_t stored_bytes, memory_bytes;
};

// Throws Error: what is wrong with the folder.
Needs needs_of(const fs::path& folder) {
    const Checkpoint checkpoint = open_checkpoint(folder);
    const Weights weights =
        bind(checkpoint, parse_shape(checkpoint.config, (folder / "config.json").string()));
    Needs needs{weights.shape, weights.bytes, packed_bytes(weights, 1, Fp8::unpack_in_cache)};
    const fs::path drafter = folder / "dflash";
    if (!exists(drafter / "config.json")) return needs;
    const Checkpoint beside = open_checkpoint(drafter);
    const uint64_t bytes = sum_of(drafter_inventory(
        parse_drafter_shape(beside.config, weights.shape, (drafter / "config.json").string())));
    needs.stored_bytes += bytes;
    needs.memory_bytes += bytes;
    return needs;
}

void examine_folder(const fs::path& folder, const MachineFound& machine, Examination& all) {
    Finding finding{"model", "", "", Verdict::kFine, ""};
    Needs needs{};
    try {
        needs = needs_of(folder);
    } catch (const Error& wrong) {
        all.add({"model", wrong.what(), "", Verdict::kBroken,
                 fmt::format("tessera inspect {} says what is there and what is missing",
                             folder.string())});
        return;
    }
    const bool fits = needs.memory_bytes <= machine.memory_bytes;
    // What stays in the last cache is read from there.
    const bool cached = needs.memory_bytes <= last_cache_bytes();
    const double rate =
        cached ? measured_bandwidth(needs.memory_bytes, machine.threads) : machine.bytes_per_second;
    const double ms = floor_ms(needs.shape, rate);
    const std::string name = canonical(folder).filename().string();
    all.facts["model"] = {{"folder", folder.string()},
                          {"stored_bytes", needs.stored_bytes},
                          {"memory_bytes", needs.memory_bytes},
                          {"fits", fits},
                          {"in_last_cache", cached},
                          {"read_bytes_per_second", rate},
                          {"floor_ms_per_token", ms}};
    finding.found = fmt::format("{}: {} of weights, {} in memory", name,
                                bytes_text(needs.stored_bytes), bytes_text(needs.memory_bytes));
    if (cached) finding.found += fmt::format("; in the last cache: {:.1f} GB/s", 1e-9 * rate);
    finding.means = floor_text(ms);
    if (!fits) {
        finding.means.clear();
        finding.verdict = Verdict::kBroken;
        finding.fix = fmt::format(
            "it needs {}, {} may be taken: close other programs, raise the memory limit, or take "
            "a smaller checkpoint",
            bytes_text(needs.memory_bytes), bytes_text(machine.memory_bytes));
    }
    all.add(std::move(finding));
}

void examine_disk(const fs::path& folder, Examination& all) {
    std::error_code problem;
    const fs::space_info space = fs::space(folder, problem);
    if (problem) return;
    all.facts["disk"] = {{"folder", folder.string()}, {"free_bytes", space.available}};
    all.add({"disk", fmt::format("{} free at {}", bytes_text(space.available), folder.string()),
             "weights are mapped from their files: no copy on disk is made", Verdict::kFine, ""});
}

// By its shape alone: nobody needs to have it.
void examine_published(const char* name, const MachineFound& machine, Examination& all) {
    const PublishedModel model = *published_model(name);
    uint64_t bytes = sum_of(target_inventory(model.shape));
    if (model.drafter) bytes += sum_of(drafter_inventory(*model.drafter));
    const bool fits = bytes <= machine.memory_bytes;
    const double ms = floor_ms(model.shape, machine.bytes_per_second);
    all.facts["published"][name] = {
        {"stored_bytes", bytes}, {"fits", fits}, {"floor_ms_per_token", ms}};
    all.add({name, fmt::format("{} of weights", bytes_text(bytes)),
             fits ? floor_text(ms)
                  : fmt::format("does not fit {} of memory", bytes_text(machine.memory_bytes)),
             Verdict::kFine, ""});
}

}  // namespace

void examine_models(const std::optional<fs::path>& folder, const MachineFound& machine,
                    Examination& all) {
    examine_disk(fs::current_path(), all);
    if (folder) examine_folder(*folder, machine, all);
    for (const char* name : kPublished) examine_published(name, machine, all);
}

}  // namespace tessera
