#include "base/topology.h"

#include <algorithm>
#include <memory>
#include <utility>

#include <hwloc.h>
#include <sched.h>

#include "base/check.h"
#include "base/error.h"

namespace tessera {
namespace {

// ------------------------------------------------------------------ hwloc's view

struct Destroy {
    void operator()(hwloc_topology* topology) const { hwloc_topology_destroy(topology); }
    void operator()(hwloc_bitmap_s* set) const { hwloc_bitmap_free(set); }
};
using Handle = std::unique_ptr<hwloc_topology, Destroy>;
using Bitmap = std::unique_ptr<hwloc_bitmap_s, Destroy>;

// The running machine, or the one described; null on failure.
Handle loaded(const char* description) {
    hwloc_topology_t made = nullptr;
    if (hwloc_topology_init(&made) != 0) return nullptr;
    Handle handle(made);
    // Caches only take time to look for. Sockets and groups must stay: nodes hang on them.
    hwloc_topology_set_cache_types_filter(made, HWLOC_TYPE_FILTER_KEEP_NONE);
    // Asking the processor itself sends this thread to every CPU in turn: 10 to 20 ms instead of 3
    // with two cores. The system knows as much.
    hwloc_topology_set_components(made, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "x86");
    if (description != nullptr && hwloc_topology_set_synthetic(made, description) != 0)
        return nullptr;
    if (hwloc_topology_load(made) != 0) return nullptr;
    return handle;
}

std::vector<uint32_t> numbers(hwloc_const_bitmap_t set) {
    std::vector<uint32_t> all;
    if (set == nullptr || hwloc_bitmap_weight(set) < 0) return all;  // infinite
    for (int i = hwloc_bitmap_first(set); i >= 0; i = hwloc_bitmap_next(set, i))
        all.push_back(static_cast<uint32_t>(i));
    return all;
}

Topology read(hwloc_topology* topology) {
    // Where the system tells no cores, every CPU is one.
    const bool has_cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE) > 0;
    const hwloc_obj_type_t type = has_cores ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
    Topology all;
    hwloc_obj_t core = nullptr;
    while ((core = hwloc_get_next_obj_by_type(topology, type, core)) != nullptr) {
        const std::vector<uint32_t> near = numbers(core->nodeset);
        all.cores.push_back({numbers(core->cpuset), near.empty() ? 0 : near.front()});
    }
    for (const Core& one : all.cores) all.nodes.push_back(one.node);
    std::ranges::sort(all.nodes);
    all.nodes.erase(std::unique(all.nodes.begin(), all.nodes.end()), all.nodes.end());
    for (Core& one : all.cores)
        one.node =
            static_cast<uint32_t>(std::ranges::find(all.nodes, one.node) - all.nodes.begin());
    std::ranges::stable_sort(all.cores, {}, &Core::node);
    return all;
}

struct Machine {
    Handle handle;  // null where hwloc failed
    Topology all;
};

// Looking takes milliseconds: once for all threads.
const Machine& machine() {
    static const Machine found = [] {
        Machine made{loaded(nullptr), {}};
        if (made.handle != nullptr) made.all = read(made.handle.get());
        return made;
    }();
    return found;
}

}  // namespace

Topology topology() {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    // Fails on machines of more than CPU_SETSIZE CPUs: then what hwloc found, without the mask.
    const bool known = sched_getaffinity(0, sizeof mask, &mask) == 0;
    const auto may_use = [&](uint32_t cpu) {
        return !known || (cpu < CPU_SETSIZE && CPU_ISSET(cpu, &mask));
    };
    Topology found = restricted(machine().all, may_use);
    if (!found.cores.empty()) return found;
    for (uint32_t cpu = 0; known && cpu < CPU_SETSIZE; ++cpu)
        if (may_use(cpu)) found.cores.push_back({{cpu}, 0});
    if (found.cores.empty()) found.cores.push_back({{0}, 0});
    found.nodes = {0};
    return found;
}

Topology restricted(const Topology& all, const std::function<bool(uint32_t cpu)>& may_use) {
    Topology left;
    for (const Core& core : all.cores) {
        Core part{{}, core.node};
        std::ranges::copy_if(core.cpus, std::back_inserter(part.cpus), may_use);
        if (part.cpus.empty()) continue;
        const uint32_t node = all.nodes[core.node];  // cores come node by node
        if (left.nodes.empty() || left.nodes.back() != node) left.nodes.push_back(node);
        part.node = static_cast<uint32_t>(left.nodes.size() - 1);
        left.cores.push_back(std::move(part));
    }
    return left;
}

Topology synthetic_topology(const std::string& description) {
    const Handle handle = loaded(description.c_str());
    if (handle == nullptr) fail("hwloc cannot imagine \"{}\"", description);
    return read(handle.get());
}

// ------------------------------------------------------------------ groups of workers

std::vector<std::optional<uint32_t>> place_workers(const Topology& topology, uint32_t groups,
                                                   uint32_t each, uint32_t caller_cpu) {
    CHECK(groups > 0 && each > 0 && !topology.nodes.empty());
    const size_t count = size_t{groups} * each, nodes = topology.nodes.size();
    std::vector<std::optional<uint32_t>> cpus(count);
    if (topology.cores.size() < count) return cpus;

    // The first CPUs of each node's cores that nobody has, in the order they are given out.
    std::vector<std::vector<uint32_t>> free(nodes);
    std::optional<Core> callers;
    for (const Core& core : topology.cores) {
        if (std::ranges::find(core.cpus, caller_cpu) != core.cpus.end())
            callers = core;
        else
            free[core.node].push_back(core.cpus.front());
    }
    // The first worker's core goes to nobody. Elsewhere the caller's core is the last to be given.
    if (callers && callers->node != 0) free[callers->node].push_back(callers->cpus.front());
    if (!callers || callers->node != 0) free[0].erase(free[0].begin());

    const auto take = [&](size_t worker, size_t node) {
        if (free[node].empty()) return false;
        cpus[worker] = free[node].front();
        free[node].erase(free[node].begin());
        return true;
    };
    std::vector<size_t> homeless;  // no group loses its own node's cores to them
    for (size_t worker = 1; worker < count; ++worker)
        if (!take(worker, worker / each % nodes)) homeless.push_back(worker);
    for (const size_t worker : homeless) {
        size_t node = worker / each % nodes;
        while (!take(worker, node)) node = (node + 1) % nodes;  // there are cores for all
    }
    return cpus;
}

std::optional<uint32_t> memory_node(const Topology& topology, uint32_t group, uint32_t groups) {
    const size_t nodes = topology.nodes.size();
    if (nodes < 2 || groups < nodes) return std::nullopt;
    return topology.nodes[group % nodes];
}

void prefer_node(std::span<std::byte> memory, uint32_t node) {
    hwloc_topology* const here = machine().handle.get();
    if (here == nullptr || memory.empty()) return;
    const Bitmap nodes(hwloc_bitmap_alloc());
    if (nodes == nullptr) return;
    hwloc_bitmap_only(nodes.get(), node);
    // Without HWLOC_MEMBIND_STRICT a full node is no failure: other nodes help out.
    hwloc_set_area_membind(here, memory.data(), memory.size(), nodes.get(), HWLOC_MEMBIND_BIND,
                           HWLOC_MEMBIND_BYNODESET);
}

}  // namespace tessera
