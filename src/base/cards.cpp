#include "base/cards.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <optional>
#include <type_traits>

#include <dlfcn.h>
#include <fmt/format.h>

namespace tessera {
namespace {

namespace fs = std::filesystem;

constexpr const char* kNvidiaVendor = "0x10de";
constexpr const char* kDisplayClass = "0x03";  // 0x0300 VGA, 0x0302 3D controller

std::string text_of(const fs::path& file) {
    std::ifstream stream(file);
    return {std::istreambuf_iterator<char>(stream), {}};
}

// What stands behind "key:" in lines of such; empty if nothing.
std::string field(const std::string& text, std::string_view key) {
    size_t at = text.find(key);
    if (at == text.npos) return {};
    at = text.find_first_not_of(" \t", text.find(':', at) + 1);
    if (at == text.npos) return {};
    return text.substr(at, text.find('\n', at) - at);
}

// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Tue ...": the first word that is a
// number with a point; newer drivers say "Open Kernel Module for x86_64" before it.
std::string version_in(const std::string& text) {
    size_t at = 0;
    while ((at = text.find_first_of("0123456789", at)) != text.npos) {
        const size_t end = std::min(text.find_first_not_of("0123456789.", at), text.size());
        const std::string word = text.substr(at, end - at);
        const bool alone = at > 0 && text[at - 1] == ' ';
        if (alone && word.find('.') != word.npos) return word;
        at = end;
    }
    return {};
}

// ------------------------------------------------------------------ the driver's library

// The few functions of NVML that are asked, by their published names and types. 0 is success.
struct Nvml {
    using Device = void*;
    struct Memory {
        unsigned long long total, free, used;
    };
    struct Bus {  // nvmlPciInfo_t
        char legacy[16];
        unsigned domain, bus, device, pci_device, pci_subsystem;
        char address[32];
    };

    int (*init)();
    int (*shutdown)();
    int (*count)(unsigned*);
    int (*handle)(unsigned, Device*);
    int (*name)(Device, char*, unsigned);
    int (*memory)(Device, Memory*);
    int (*bus)(Device, Bus*);
    int (*capability)(Device, int* major, int* minor);
    int (*driver)(char*, unsigned);

    // None where the library or one of them is missing. The library stays loaded.
    static std::optional<Nvml> open() {
        void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) return std::nullopt;
        Nvml found{};
        const auto take = [&](const char* symbol, auto& function) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(
                dlsym(library, symbol));
            return function != nullptr;
        };
        const bool whole = take("nvmlInit_v2", found.init) &&
                           take("nvmlShutdown", found.shutdown) &&
                           take("nvmlDeviceGetCount_v2", found.count) &&
                           take("nvmlDeviceGetHandleByIndex_v2", found.handle) &&
                           take("nvmlDeviceGetName", found.name) &&
                           take("nvmlDeviceGetMemoryInfo", found.memory) &&
                           take("nvmlDeviceGetPciInfo_v3", found.bus) &&
                           take("nvmlDeviceGetCudaComputeCapability", found.capability) &&
                           take("nvmlSystemGetDriverVersion", found.driver);
        return whole ? std::optional(found) : std::nullopt;
    }
};

CardsSeen asked(const Nvml& nvml) {
    CardsSeen all;
    std::array<char, 96> text{};
    if (nvml.driver(text.data(), text.size()) == 0) all.driver = text.data();
    unsigned count = 0;
    if (nvml.count(&count) != 0) return all;
    for (unsigned i = 0; i < count; ++i) {
        Nvml::Device device = nullptr;
        if (nvml.handle(i, &device) != 0) continue;
        CardSeen card;
        Nvml::Bus bus{};
        Nvml::Memory memory{};
        int major = 0, minor = 0;
        if (nvml.bus(device, &bus) == 0) card.address = bus.address;
        if (nvml.name(device, text.data(), text.size()) == 0) card.name = text.data();
        if (nvml.memory(device, &memory) == 0) {
            card.memory_bytes = memory.total;
            card.free_bytes = memory.free;
        }
        if (nvml.capability(device, &major, &minor) == 0)
            card.capability = fmt::format("{}.{}", major, minor);
        all.cards.push_back(std::move(card));
    }
    return all;
}

}  // namespace

CardsSeen system_cards(const fs::path& root) {
    CardsSeen all;
    const fs::path driver = root / "proc/driver/nvidia";
    all.driver = version_in(field(text_of(driver / "version"), "NVRM version"));
    std::error_code none;
    for (const auto& entry : fs::directory_iterator(root / "sys/bus/pci/devices", none)) {
        if (!text_of(entry.path() / "vendor").starts_with(kNvidiaVendor)) continue;
        if (!text_of(entry.path() / "class").starts_with(kDisplayClass)) continue;
        all.cards.push_back({entry.path().filename().string(), "", 0, 0, ""});
    }
    // Inside a container the bus may be hidden while the driver tells.
    for (const auto& entry : fs::directory_iterator(driver / "gpus", none)) {
        const std::string address = entry.path().filename().string();
        auto card = std::ranges::find(all.cards, address, &CardSeen::address);
        if (card == all.cards.end()) card = all.cards.insert(card, {address, "", 0, 0, ""});
        card->name = field(text_of(entry.path() / "information"), "Model");
    }
    std::ranges::sort(all.cards, {}, &CardSeen::address);
    return all;
}

CardsSeen all_cards() {
    CardsSeen seen = system_cards();
    const auto nvml = Nvml::open();
    if (!nvml || nvml->init() != 0) return seen;
    CardsSeen told = asked(*nvml);
    nvml->shutdown();
    if (told.cards.empty()) return seen;
    if (told.driver.empty()) told.driver = seen.driver;
    return told;
}

}  // namespace tessera
