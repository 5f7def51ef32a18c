// Who runs where: the kernel is asked, from within each worker.
#include "runtime/workers.h"

#include <set>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <sched.h>

#include "base/topology.h"

namespace tessera {
namespace {

std::vector<uint32_t> mask_of_this_thread() {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    EXPECT_EQ(sched_getaffinity(0, sizeof mask, &mask), 0);
    std::vector<uint32_t> cpus;
    for (uint32_t cpu = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(cpu, &mask)) cpus.push_back(cpu);
    return cpus;
}

// The masks of all workers; the caller's is the first.
std::vector<std::vector<uint32_t>> masks(uint32_t groups, uint32_t each, bool pin) {
    Workers workers(groups, each, pin);
    std::vector<std::vector<uint32_t>> found(workers.count());
    workers.everyone([&](uint32_t worker) { found[worker] = mask_of_this_thread(); });
    return found;
}

// The machine of a test may have one core: then there is nobody to pin.
TEST(Workers, ArePinnedToCoresOfTheirOwn) {
    const auto cores = static_cast<uint32_t>(topology().cores.size());
    const std::vector<uint32_t> own = mask_of_this_thread();
    const auto found = masks(1, cores, true);
    ASSERT_EQ(found.size(), cores);
    EXPECT_EQ(found[0], own);  // the caller stays as free as it was
    std::set<uint32_t> taken;
    for (uint32_t worker = 1; worker < cores; ++worker) {
        ASSERT_EQ(found[worker].size(), 1u) << worker;
        EXPECT_TRUE(taken.insert(found[worker].front()).second) << worker;
    }
}

TEST(Workers, AreNotPinnedUnasked) {
    for (const auto& mask : masks(1, 2, false)) EXPECT_EQ(mask, mask_of_this_thread());
}

TEST(Workers, AreNotPinnedWhereThereAreMoreOfThemThanCores) {
    const auto cores = static_cast<uint32_t>(topology().cores.size());
    for (const auto& mask : masks(2, cores, true)) EXPECT_EQ(mask, mask_of_this_thread());
    std::thread([] {
        cpu_set_t mask;
        CPU_ZERO(&mask);
        CPU_SET(topology().cores.front().cpus.front(), &mask);
        ASSERT_EQ(sched_setaffinity(0, sizeof mask, &mask), 0);
        for (const auto& found : masks(1, 2, true)) EXPECT_EQ(found, mask_of_this_thread());
    }).join();
}

}  // namespace
}  // namespace tessera
