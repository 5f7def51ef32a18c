// Limits, memory and cards of imagined machines: small trees of the files in which a system tells.
#include <gmock/gmock.h>

#include "base/cards.h"
#include "base/control_group.h"
#include "base/memory.h"
#include "checkpoint/scratch_folder.h"

namespace tessera {
namespace {

using test::ScratchFolder;
using testing::IsEmpty;
using testing::Optional;
using testing::SizeIs;

constexpr const char* kGroup = "proc/self/cgroup";
constexpr const char* kTop = "sys/fs/cgroup/";

TEST(ControlGroup, NothingToReadLimitsNothing) {
    const ScratchFolder root;
    const ControlGroup group = read_control_group(root.path());
    EXPECT_EQ(group.cpus, std::nullopt);
    EXPECT_EQ(group.memory_bytes, std::nullopt);
    EXPECT_EQ(group.memory_left, std::nullopt);
}

TEST(ControlGroup, ThatOfAContainerIsTheTop) {
    const ScratchFolder root;
    root.write(kGroup, "0::/\n");
    root.write(std::string(kTop) + "cpu.max", "150000 100000\n");
    root.write(std::string(kTop) + "memory.max", "1000\n");
    root.write(std::string(kTop) + "memory.current", "900\n");
    root.write(std::string(kTop) + "memory.stat", "anon 300\nactive_file 200\ninactive_file 100\n");
    const ControlGroup group = read_control_group(root.path());
    EXPECT_THAT(group.cpus, Optional(1.5));
    EXPECT_THAT(group.memory_bytes, Optional(1000u));
    EXPECT_THAT(group.memory_left, Optional(400u));  // the files' pages are given up on demand
}

TEST(ControlGroup, OfAServiceAndAllAroundItTheTightestHolds) {
    const ScratchFolder root;
    root.write(kGroup, "1:name=systemd:/elsewhere\n0::/system.slice/tessera.service\n");
    root.write(std::string(kTop) + "system.slice/tessera.service/cpu.max", "max 100000\n");
    root.write(std::string(kTop) + "system.slice/tessera.service/memory.max", "5000\n");
    root.write(std::string(kTop) + "system.slice/tessera.service/memory.current", "1000\n");
    root.write(std::string(kTop) + "system.slice/cpu.max", "300000 100000\n");
    root.write(std::string(kTop) + "system.slice/memory.max", "9000\n");
    root.write(std::string(kTop) + "system.slice/memory.current", "8000\n");
    const ControlGroup group = read_control_group(root.path());
    EXPECT_THAT(group.cpus, Optional(3.0));
    EXPECT_THAT(group.memory_bytes, Optional(5000u));
    EXPECT_THAT(group.memory_left, Optional(1000u));
}

TEST(ControlGroup, WordsAndWhatLiesOutsideAreNoLimits) {
    const ScratchFolder root;
    root.write(kGroup, "0::/../outside\n");
    root.write(std::string(kTop) + "cpu.max", "max 100000\n");
    root.write(std::string(kTop) + "memory.max", "max\n");
    root.write(std::string(kTop) + "../outside/cpu.max", "100000 100000\n");
    const ControlGroup group = read_control_group(root.path());
    EXPECT_EQ(group.cpus, std::nullopt);
    EXPECT_EQ(group.memory_left, std::nullopt);
}

TEST(SystemMemory, IsInKibibytes) {
    const ScratchFolder root;
    root.write("proc/meminfo", "MemTotal:    2048 kB\nMemFree: 12 kB\nMemAvailable:  1024 kB\n");
    const SystemMemory memory = system_memory(root.path());
    EXPECT_EQ(memory.total_bytes, 2048u << 10);
    EXPECT_EQ(memory.available_bytes, 1024u << 10);
}

TEST(Cards, NoneWhereThereAreNoFiles) {
    const ScratchFolder root;
    const CardsSeen found = system_cards(root.path());
    EXPECT_THAT(found.cards, IsEmpty());
    EXPECT_EQ(found.driver, "");
}

TEST(Cards, ACardWithoutADriverIsSeenOnTheBus) {
    const ScratchFolder root;
    const std::string bus = "sys/bus/pci/devices/";
    root.write(bus + "0000:19:00.0/vendor", "0x10de\n");
    root.write(bus + "0000:19:00.0/class", "0x030200\n");
    root.write(bus + "0000:1a:00.0/vendor", "0x10de\n");  // a switch of the same vendor
    root.write(bus + "0000:1a:00.0/class", "0x068000\n");
    root.write(bus + "0000:00:02.0/vendor", "0x8086\n");  // another vendor's display
    root.write(bus + "0000:00:02.0/class", "0x030000\n");
    const CardsSeen found = system_cards(root.path());
    ASSERT_THAT(found.cards, SizeIs(1));
    EXPECT_EQ(found.cards[0].address, "0000:19:00.0");
    EXPECT_EQ(found.cards[0].name, "");
    EXPECT_EQ(found.driver, "");
}

TEST(Cards, TheDriverNamesThemEvenWhereTheBusIsHidden) {
    const ScratchFolder root;
    const std::string driver = "proc/driver/nvidia/";
    root.write(driver + "version",
               "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"
               "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n");
    root.write(driver + "gpus/0000:19:00.0/information",
               "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 18\n");
    root.write("sys/bus/pci/devices/0000:19:00.0/vendor", "0x10de\n");
    root.write("sys/bus/pci/devices/0000:19:00.0/class", "0x030200\n");
    root.write(driver + "gpus/0000:04:00.0/information", "Model: NVIDIA H200\n");
    const CardsSeen found = system_cards(root.path());
    EXPECT_EQ(found.driver, "570.86.15");
    ASSERT_THAT(found.cards, SizeIs(2));
    EXPECT_EQ(found.cards[0].name, "NVIDIA H200");
    EXPECT_EQ(found.cards[1].name, "NVIDIA H100 80GB HBM3");
}

}  // namespace
}  // namespace tessera
