// Cores, nodes and who sits where, on imagined machines; and that the real one keeps to its mask.
#include "base/topology.h"

#include <algorithm>
#include <set>
#include <thread>

#include <gmock/gmock.h>
#include <sched.h>

#include "base/arena.h"
#include "base/control_group.h"
#include "base/error.h"
#include "base/threads.h"

namespace tessera {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint32_t kNowhere = 999;

// Where each worker goes; -1 for none.
std::vector<int> placed(const std::string& machine, uint32_t groups, uint32_t each,
                        uint32_t caller) {
    std::vector<int> cpus;
    for (const auto cpu : place_workers(synthetic_topology(machine), groups, each, caller))
        cpus.push_back(cpu ? static_cast<int>(*cpu) : -1);
    return cpus;
}

TEST(Topology, CountsASharedCoreOnceAndGroupsByNode) {
    const Topology found = synthetic_topology("node:2 core:4 pu:2");
    EXPECT_THAT(found.nodes, ElementsAre(0, 1));
    ASSERT_EQ(found.cores.size(), 8u);
    for (uint32_t i = 0; i < 8; ++i) {
        EXPECT_THAT(found.cores[i].cpus, ElementsAre(2 * i, 2 * i + 1));
        EXPECT_EQ(found.cores[i].node, i / 4);
    }
}

struct Machine {
    const char* description;
    size_t nodes, cores;
};
constexpr Machine kMachines[] = {
    {"pu:1", 1, 1},
    {"core:2 pu:1", 1, 2},
    {"pack:2 core:4 pu:2", 1, 8},          // one memory for two sockets
    {"pack:2 node:2 core:3 pu:1", 4, 12},  // two memories a socket
    {"node:4 pu:2", 4, 8},                 // no cores told: every CPU is one
};

TEST(Topology, IsReadFromAnyMachine) {
    for (const Machine& machine : kMachines) {
        const Topology found = synthetic_topology(machine.description);
        EXPECT_EQ(found.nodes.size(), machine.nodes) << machine.description;
        EXPECT_EQ(found.cores.size(), machine.cores) << machine.description;
        EXPECT_TRUE(std::ranges::is_sorted(found.cores, {}, &Core::node)) << machine.description;
    }
    EXPECT_THROW(synthetic_topology("three cats"), Error);
}

TEST(Topology, KeepsNodesByTheSystemsNumbers) {
    // CPUs in turns, as many machines number them: 0 and 2 on the first node.
    const Topology found = synthetic_topology("node:2(indexes=5,3) core:2 pu:1(indexes=0,2,1,3)");
    EXPECT_THAT(found.nodes, ElementsAre(3, 5));
    EXPECT_THAT(found.cores[0].cpus, ElementsAre(1));
    EXPECT_THAT(found.cores[1].cpus, ElementsAre(3));
    EXPECT_THAT(found.cores[2].cpus, ElementsAre(0));
    EXPECT_THAT(found.cores[3].cpus, ElementsAre(2));
}

TEST(Topology, RestrictedLosesCoresAndNodes) {
    const Topology all = synthetic_topology("node:3 core:2 pu:2");  // CPUs 0-3, 4-7, 8-11
    const std::set<uint32_t> mask = {1, 8, 9, 10};
    const Topology left = restricted(all, [&](uint32_t cpu) { return mask.contains(cpu); });
    EXPECT_THAT(left.nodes, ElementsAre(0, 2));
    ASSERT_EQ(left.cores.size(), 3u);
    EXPECT_THAT(left.cores[0].cpus, ElementsAre(1));  // the second thread of its core alone
    EXPECT_THAT(left.cores[1].cpus, ElementsAre(8, 9));
    EXPECT_THAT(left.cores[2].cpus, ElementsAre(10));
    EXPECT_EQ(left.cores[0].node, 0u);
    EXPECT_EQ(left.cores[1].node, 1u);  // the index, not the system's number
    EXPECT_THAT(restricted(all, [](uint32_t) { return false; }).cores, IsEmpty());
}

struct Placing {
    const char* what;
    const char* machine;
    uint32_t groups, each, caller;
    std::vector<int> cpus;
};
const Placing kPlacings[] = {
    {"one group, all cores", "core:4 pu:1", 1, 4, 0, {-1, 1, 2, 3}},
    {"the caller's core stays free", "core:4 pu:1", 1, 4, 2, {-1, 0, 1, 3}},
    {"with fewer workers than cores too", "core:4 pu:1", 1, 2, 0, {-1, 1}},
    {"not on the core's second thread either", "core:4 pu:2", 1, 4, 3, {-1, 0, 4, 6}},
    {"one group keeps to its node", "node:2 core:4 pu:2", 1, 4, 0, {-1, 2, 4, 6}},
    {"and then to the next", "node:2 core:2 pu:1", 1, 4, 0, {-1, 1, 2, 3}},
    {"two groups, a node each", "node:2 core:4 pu:1", 2, 4, 1, {-1, 0, 2, 3, 4, 5, 6, 7}},
    {"and with cores to spare", "node:2 core:4 pu:1", 2, 2, 0, {-1, 1, 4, 5}},
    {"a caller on the wrong node", "node:2 core:4 pu:1", 2, 3, 4, {-1, 1, 2, 5, 6, 7}},
    {"its core is the last to go", "node:2 core:2 pu:1", 2, 2, 2, {-1, 1, 3, 2}},
    {"four groups on two nodes", "node:2 core:4 pu:1", 4, 2, 0, {-1, 1, 4, 5, 2, 3, 6, 7}},
    {"four groups on four nodes", "node:4 core:2 pu:2", 4, 2, 0, {-1, 2, 4, 6, 8, 10, 12, 14}},
    {"a caller on no core that is known",
     "node:2 core:4 pu:1",
     2,
     3,
     kNowhere,
     {-1, 1, 2, 4, 5, 6}},
    {"a group takes no other's core", "node:3 core:2 pu:1", 2, 3, 0, {-1, 1, 4, 2, 3, 5}},
    {"more workers than cores", "core:2 pu:2", 1, 3, 0, {-1, -1, -1}},
    {"one worker", "core:2 pu:1", 1, 1, 0, {-1}},
};

TEST(PlaceWorkers, EveryoneHasACoreOnTheGroupsNode) {
    for (const Placing& p : kPlacings)
        EXPECT_EQ(placed(p.machine, p.groups, p.each, p.caller), p.cpus) << p.what;
}

TEST(PlaceWorkers, NoCoreTwice) {
    for (const char* machine : {"core:6 pu:2", "node:2 core:3 pu:2", "node:3 core:5 pu:1"}) {
        const Topology here = synthetic_topology(machine);
        const auto core_of = [&](uint32_t cpu) {
            return std::ranges::find_if(here.cores, [&](const Core& core) {
                return std::ranges::find(core.cpus, cpu) != core.cpus.end();
            });
        };
        for (uint32_t groups = 1; groups <= 4; ++groups) {
            for (uint32_t each = 1; groups * each <= here.cores.size(); ++each) {
                for (uint32_t caller = 0; caller < 16; ++caller) {
                    const auto cpus = place_workers(here, groups, each, caller);
                    ASSERT_EQ(cpus.size(), groups * each);
                    EXPECT_FALSE(cpus[0]);
                    std::set<uint32_t> cores;
                    for (size_t i = 1; i < cpus.size(); ++i) {
                        ASSERT_TRUE(cpus[i]);
                        const auto core = core_of(*cpus[i]);
                        EXPECT_TRUE(cores.insert(core->cpus.front()).second);
                        const bool callers = std::ranges::count(core->cpus, caller) > 0;
                        EXPECT_FALSE(callers && core->node == 0) << machine;
                    }
                }
            }
        }
    }
}

TEST(MemoryNode, IsTheGroupsWhereEveryNodeHasOne) {
    const Topology one = synthetic_topology("core:4 pu:1");
    const Topology two = synthetic_topology("node:2(indexes=4,7) core:4 pu:1");
    EXPECT_EQ(memory_node(one, 0, 1), std::nullopt);
    EXPECT_EQ(memory_node(one, 1, 2), std::nullopt);
    EXPECT_EQ(memory_node(two, 0, 1), std::nullopt);  // its workers may sit on both
    EXPECT_EQ(memory_node(two, 0, 2), 4u);
    EXPECT_EQ(memory_node(two, 1, 2), 7u);
    EXPECT_EQ(memory_node(two, 2, 4), 4u);
    EXPECT_EQ(memory_node(two, 3, 4), 7u);
}

// ------------------------------------------------------------------ the machine of the test

TEST(ThisMachine, IsWithinTheMask) {
    cpu_set_t mask;
    ASSERT_EQ(sched_getaffinity(0, sizeof mask, &mask), 0);
    const Topology here = topology();
    ASSERT_FALSE(here.cores.empty());
    int cpus = 0;
    for (const Core& core : here.cores) {
        EXPECT_LT(core.node, here.nodes.size());
        ASSERT_FALSE(core.cpus.empty());
        for (const uint32_t cpu : core.cpus) EXPECT_TRUE(CPU_ISSET(cpu, &mask)) << cpu;
        cpus += static_cast<int>(core.cpus.size());
    }
    EXPECT_EQ(cpus, CPU_COUNT(&mask));
    const double cores = static_cast<double>(here.cores.size());
    const double allowed = std::min(read_control_group().cpus.value_or(cores), cores);
    EXPECT_EQ(available_threads(), std::max(1u, static_cast<uint32_t>(allowed)));
}

TEST(ThisMachine, AMaskOfOneCoreLeavesOneCore) {
    for (const Core& core : topology().cores) {
        std::thread([&] {
            cpu_set_t mask;
            CPU_ZERO(&mask);
            CPU_SET(core.cpus.front(), &mask);
            ASSERT_EQ(sched_setaffinity(0, sizeof mask, &mask), 0);
            const Topology here = topology();
            ASSERT_EQ(here.cores.size(), 1u);
            EXPECT_THAT(here.cores[0].cpus, ElementsAre(core.cpus.front()));
            EXPECT_EQ(here.nodes.size(), 1u);
            EXPECT_EQ(available_threads(), 1u);
        }).join();
    }
}

// Every node of this machine can be asked for, and one that is not there changes nothing.
TEST(ThisMachine, MemoryOfANodeIsMemory) {
    std::vector<uint32_t> nodes = topology().nodes;
    nodes.push_back(1000);
    for (const uint32_t node : nodes) {
        Arena arena(uint64_t{3} << 20, node);
        EXPECT_EQ(arena.data()[0], std::byte{0});
        std::fill_n(arena.data(), arena.bytes(), std::byte{7});
        EXPECT_EQ(arena.data()[arena.bytes() - 1], std::byte{7});
    }
}

}  // namespace
}  // namespace tessera
