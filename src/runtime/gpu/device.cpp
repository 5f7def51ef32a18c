#include "runtime/gpu/device.h"

namespace tessera::gpu {

std::string no_card() {
    int count = 0;
    const cudaError_t result = cudaGetDeviceCount(&count);
    if (result != cudaSuccess) return cudaGetErrorString(result);
    if (count == 0) return "no CUDA device";
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    if (major != 9 && major != 10)
        return fmt::format("its compute capability is {}.x; this build has code for 9.0 and 10.0",
                           major);
    return {};
}

Card find_card() {
    if (const std::string why = no_card(); !why.empty()) fail("GPU: {}", why);
    cudaDeviceProp properties{};
    check_device(cudaGetDeviceProperties(&properties, 0), "asking for its properties");
    size_t free = 0, total = 0;
    check_device(cudaMemGetInfo(&free, &total), "asking for its memory");
    return {properties.name,
            static_cast<uint32_t>(properties.multiProcessorCount),
            static_cast<uint32_t>(properties.sharedMemPerBlockOptin),
            free,
            total,
            properties.major};
}

}  // namespace tessera::gpu
