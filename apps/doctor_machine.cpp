// What the machine has: read from the system's files, and its read bandwidth measured.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/resource.h>

#include "base/cards.h"
#include "base/control_group.h"
#include "base/memory.h"
#include "base/threads.h"
#include "base/topology.h"
#include "runtime/cpu.h"
#include "server/config.h"

#include "doctor.h"
#include "report.h"

namespace tessera {
namespace {

constexpr double kGB = 1e9;

void examine_processor(Examination& all) {
    std::vector<std::string> able;
    for (const Isa isa : kIsas)
        if (find_kernels(isa) != nullptr) able.emplace_back(isa_name(isa));
    const Isa best = best_kernels().isa;
    const std::string name = origin()["cpu"];
    all.facts["cpu"] = {{"name", name}, {"kernels", able}, {"best", isa_name(best)}};
    Finding finding{"processor", fmt::format("{}; kernels: {}", name, fmt::join(able, ", ")),
                    fmt::format("{} will be used", isa_name(best)), Verdict::kFine, ""};
    if (best == Isa::portable) {
        finding.verdict = Verdict::kNotable;
        finding.fix = "this processor has no AVX2: correct and several times slower than with it";
    }
    all.add(std::move(finding));
}

uint32_t examine_cores(Examination& all) {
    const Topology here = topology();
    const ControlGroup group = read_control_group();
    const uint32_t threads = available_threads();
    const auto cores = static_cast<uint32_t>(here.cores.size());
    size_t cpus = 0;
    for (const Core& core : here.cores) cpus += core.cpus.size();
    all.facts["cores"] = {
        {"cores", cores},
        {"logical", cpus},
        {"nodes", here.nodes.size()},
        {"workers", threads},
        {"control_group_cpus", group.cpus ? nlohmann::json(*group.cpus) : nlohmann::json()}};
    Finding finding{"cores",
                    fmt::format("{} cores, {} logical processors, {} memory node{}", cores, cpus,
                                here.nodes.size(), here.nodes.size() == 1 ? "" : "s"),
                    fmt::format("{} worker{} unless --threads says otherwise", threads,
                                threads == 1 ? "" : "s"),
                    Verdict::kFine, ""};
    if (group.cpus) finding.found += fmt::format("; the control group gives {:.1f}", *group.cpus);
    if (threads < cores) {
        finding.verdict = Verdict::kNotable;
        finding.fix = fmt::format(
            "the control group lets {} of {} cores work: raise its CPU limit to use the rest",
            threads, cores);
    } else if (here.nodes.size() > 1) {
        finding.means += fmt::format("; --ranks {} gives each memory node its share of the weights",
                                     here.nodes.size());
    }
    all.add(std::move(finding));
    return threads;
}

// "always [madvise] never" has its choice in brackets.
std::string large_pages() {
    std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
    for (std::string word; file >> word;)
        if (word.starts_with('[') && word.ends_with(']')) return word.substr(1, word.size() - 2);
    return "unknown";
}

uint64_t examine_memory(Examination& all) {
    const SystemMemory system = system_memory();
    const ControlGroup group = read_control_group();
    const uint64_t available = available_memory_bytes();
    const std::string pages = large_pages();
    all.facts["memory"] = {
        {"total_bytes", system.total_bytes},
        {"available_bytes", available},
        {"control_group_bytes",
         group.memory_bytes ? nlohmann::json(*group.memory_bytes) : nlohmann::json()},
        {"large_pages", pages}};
    Finding finding{
        "memory",
        fmt::format("{} of {} may be taken", bytes_text(available), bytes_text(system.total_bytes)),
        fmt::format("weights, keys and values together up to {}", bytes_text(available)),
        Verdict::kFine, ""};
    if (group.memory_bytes)
        finding.found += fmt::format("; the control group has {}", bytes_text(*group.memory_bytes));
    if (pages == "never") {
        finding.verdict = Verdict::kNotable;
        finding.fix =
            "the system gives no large pages: echo madvise > "
            "/sys/kernel/mm/transparent_hugepage/enabled lets weights lie in them";
    }
    all.add(std::move(finding));
    return available;
}

// Threads that wanted to run, on average over the last minute: before this program was one of them.
double load_before() {
    double load = 0;
    return getloadavg(&load, 1) == 1 ? load : 0;
}

double examine_bandwidth(uint64_t available, uint32_t threads, Examination& all) {
    constexpr uint64_t kBytesMin = uint64_t{512} << 20;
    const uint64_t beyond_caches = std::max(kBytesMin, 2 * last_cache_bytes());
    const uint64_t bytes = std::min(beyond_caches, available / 4);
    const double rate = measured_bandwidth(bytes, threads);
    all.facts["read_bandwidth"] = {
        {"bytes_per_second", rate}, {"threads", threads}, {"bytes", bytes}};
    std::string found = fmt::format("{:.1f} GB/s read from memory by {} thread{}", rate / kGB,
                                    threads, threads == 1 ? "" : "s");
    if (const double load = load_before(); load > 0.5)
        found += fmt::format("; busy (load {:.1f}): idle it is more", load);
    all.add({"bandwidth", std::move(found),
             fmt::format("a token that reads 1 GB of weights takes {:.1f} ms at least",
                         1e3 * kGB / rate),
             Verdict::kFine, ""});
    return rate;
}

std::string card_text(const CardSeen& card) {
    std::string text = card.name.empty() ? "NVIDIA card at " + card.address : card.name;
    if (card.memory_bytes > 0)
        text += fmt::format(", {} of {} free", bytes_text(card.free_bytes),
                            bytes_text(card.memory_bytes));
    if (!card.capability.empty()) text += fmt::format(", sm_{}", card.capability);
    return text;
}

void examine_cards(Examination& all) {
    const CardsSeen found = all_cards();
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const CardSeen& card : found.cards)
        list.push_back({{"address", card.address},
                        {"name", card.name},
                        {"memory_bytes", card.memory_bytes},
                        {"free_bytes", card.free_bytes},
                        {"capability", card.capability}});
    all.facts["gpus"] = {{"driver", found.driver}, {"cards", list}};
    if (found.cards.empty()) {
        all.add({"gpu", "none found", "decoding runs on the processor", Verdict::kFine, ""});
        return;
    }
    for (const CardSeen& card : found.cards) {
        Finding finding{"gpu", card_text(card),
                        "run and serve decode on it with --device gpu, else on the processor",
                        Verdict::kFine, ""};
        if (found.driver.empty()) {
            finding.verdict = Verdict::kNotable;
            finding.fix = "no driver is loaded for it: install NVIDIA's";
        } else {
            finding.found += ", driver " + found.driver;
        }
        all.add(std::move(finding));
    }
}

void examine_files(Examination& all) {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    const uint64_t most = limit.rlim_max, wanted = ServerConfig{}.connections_max;
    all.facts["open_files"] = {{"limit", limit.rlim_cur}, {"limit_max", most}};
    Finding finding{"open files", fmt::format("{} may be open", most),
                    fmt::format("serve's {} connections fit", wanted), Verdict::kFine, ""};
    if (most < wanted) {
        finding.means =
            fmt::format("serve takes up to {} connections: more than may be open", wanted);
        finding.verdict = Verdict::kNotable;
        finding.fix = fmt::format(
            "raise the hard limit (LimitNOFILE= of a unit, ulimit -Hn), or serve with "
            "--connections-max {}",
            most / 2);
    }
    all.add(std::move(finding));
}

}  // namespace

double measured_bandwidth(uint64_t bytes, uint32_t threads) {
    constexpr uint64_t kPieces = 64;
    constexpr uint64_t kBytesMin = uint64_t{8} << 20;  // so that every worker has some
    constexpr double kSeconds = 0.3;
    bytes = std::max(bytes, kBytesMin);
    PackedWeights subject;
    PackedRank& rank = subject.ranks.emplace_back();
    rank.arena = Arena(bytes);
    parallel_for(kPieces, threads, [&](size_t i) {
        const uint64_t piece = bytes / kPieces;
        std::memset(rank.arena.data() + i * piece, static_cast<int>(i + 1), piece);
    });
    Workers workers(1, threads, true);
    return read_bandwidth(workers, subject, kSeconds);
}

MachineFound examine_machine(Examination& all) {
    MachineFound found;
    examine_processor(all);
    found.threads = examine_cores(all);
    found.memory_bytes = examine_memory(all);
    found.bytes_per_second = examine_bandwidth(found.memory_bytes, found.threads, all);
    examine_cards(all);
    examine_files(all);
    return found;
}

}  // namespace tessera
