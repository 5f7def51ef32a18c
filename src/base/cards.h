// The NVIDIA cards of this machine, as far as the system and the driver's own library tell: found
// without CUDA, so that a binary without GPU code, or a machine without a driver, can say so.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace tessera {

struct CardSeen {
    std::string address;        // on the bus: "0000:19:00.0"
    std::string name;           // empty: the driver is not there to tell
    uint64_t memory_bytes = 0;  // 0: not told
    uint64_t free_bytes = 0;
    std::string capability;  // "9.0"; empty: not told
};

struct CardsSeen {
    std::string driver;  // "570.86.15"; empty: none is loaded
    std::vector<CardSeen> cards;
};

// From /sys/bus/pci and /proc/driver/nvidia below `root`: what is there, whether a driver speaks
// for it or not. Never fails.
CardsSeen system_cards(const std::filesystem::path& root = "/");

// The same, with memory and capability from libnvidia-ml.so.1 where it can be opened.
CardsSeen all_cards();

}  // namespace tessera
