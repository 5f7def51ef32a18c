// A driver's library that tells of two imagined cards: what doctor opens where one is installed.
// The second card keeps its name and its memory to itself.
#include <cstring>

namespace {

constexpr int kSuccess = 0, kUnknown = 999;

struct Memory {
    unsigned long long total, free, used;
};
struct Bus {
    char legacy[16];
    unsigned domain, bus, device, pci_device, pci_subsystem;
    char address[32];
};

int put(char* text, unsigned bytes, const char* what) {
    if (std::strlen(what) >= bytes) return kUnknown;
    std::strcpy(text, what);
    return kSuccess;
}

bool is_second(void* device) {
    return device == reinterpret_cast<void*>(2);
}

}  // namespace

extern "C" {

int nvmlInit_v2() {
    return kSuccess;
}
int nvmlShutdown() {
    return kSuccess;
}
int nvmlDeviceGetCount_v2(unsigned* count) {
    *count = 2;
    return kSuccess;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
    *device = reinterpret_cast<void*>(index + 1ul);
    return kSuccess;
}
int nvmlDeviceGetName(void* device, char* name, unsigned bytes) {
    return is_second(device) ? kUnknown : put(name, bytes, "Imagined H100");
}
int nvmlDeviceGetMemoryInfo(void* device, Memory* memory) {
    *memory = {80ull << 30, 79ull << 30, 1ull << 30};
    return is_second(device) ? kUnknown : kSuccess;
}
int nvmlDeviceGetPciInfo_v3(void* device, Bus* bus) {
    return put(bus->address, sizeof bus->address,
               is_second(device) ? "00000000:1A:00.0" : "00000000:19:00.0");
}
int nvmlDeviceGetCudaComputeCapability(void*, int* major, int* minor) {
    *major = 9;
    *minor = 0;
    return kSuccess;
}
int nvmlSystemGetDriverVersion(char* version, unsigned bytes) {
    return put(version, bytes, "570.86.15");
}

}  // extern "C"
