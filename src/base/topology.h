// Where this process may run, and which memory is near: cores and nodes as plain numbers. hwloc
// finds them; no other file knows it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace tessera {

// A physical core. Its logical CPUs share what multiplies, so it counts as one worker's.
struct Core {
    std::vector<uint32_t>
        cpus;       // that may be used, by the system's numbers; a worker has the first
    uint32_t node;  // an index of Topology::nodes
};

struct Topology {
    std::vector<uint32_t> nodes;  // memory nodes that have a core here, by the system's numbers
    std::vector<Core> cores;      // at least one; those of the first node first
};

// What the calling thread may use now: its affinity mask within its control group's. The machine is
// looked at once. Where hwloc fails, a core for every CPU of the mask, and one node.
Topology topology();

// What is left of it for a thread that may use only some CPUs; nothing may be left.
Topology restricted(const Topology& all, const std::function<bool(uint32_t cpu)>& may_use);

// An imagined machine in hwloc's words, "node:2 core:4 pu:2", for tests. Throws Error.
Topology synthetic_topology(const std::string& description);

// ------------------------------------------------------------------ groups of workers

// The CPU of each of `groups` times `each` workers, group by group. Group g has cores of node g %
// nodes while there are any, then of the nodes after it. The first worker is the caller: it has no
// CPU, but one core of its node stays free for it, the one it runs on if that is such a core: the
// system moves it only where something else wants to run, and a worker pinned beside it makes every
// wait a time slice (a step took 3.6 ms instead of 0.6). With fewer cores than workers none has a
// CPU: the system then shares the cores out better.
std::vector<std::optional<uint32_t>> place_workers(const Topology& topology, uint32_t groups,
                                                   uint32_t each, uint32_t caller_cpu);

// The node whose memory group `group` of `groups` should have, by the system's number. None where
// there is one node. None where there are more nodes than groups: a group's workers then sit on
// several, and one node's memory would be the bottleneck of all. What several nodes gain has not
// been measured.
std::optional<uint32_t> memory_node(const Topology& topology, uint32_t group, uint32_t groups);

// Pages of `memory` that are not there yet will come from this node while it has some. Advice: a
// system that refuses takes them from where they are first touched.
void prefer_node(std::span<std::byte> memory, uint32_t node);

}  // namespace tessera
