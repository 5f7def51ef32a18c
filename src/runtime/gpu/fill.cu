#include <algorithm>

#include "runtime/gpu/fill.h"
#include "tiles/e2m1_gpu.h"
#include "tiles/instructions_gpu.cuh"

namespace tessera::gpu {
namespace {

__device__ uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

__device__ float unit(uint32_t bits) {
    return static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-31f;
}

__device__ uint32_t word_of(Format format, uint64_t index, float size, uint64_t seed) {
    const uint64_t random = mix(seed + index * 0x9e3779b97f4a7c15u);
    const auto bits = static_cast<uint32_t>(random);
    const uint32_t in_panel = static_cast<uint32_t>(index % (panel_bytes(format) / 4));
    switch (format) {
        case Format::mxfp4: {
            // Any bits would do. These are the values that the CPU's order would give them, so that
            // a seed's weights are the same whatever the GPU's order is.
            if (in_panel >= panel_scale_bytes(format) / 4) return e2m1_for_gpu(bits);
            // A weight is at most 6 scales; a quarter of the scales are twice the others.
            const auto exponent = static_cast<uint32_t>(floorf(log2f(size / 6.0f))) + 127;
            return exponent * 0x01010101u + (bits & bits >> 1 & 0x01010101u);
        }
        case Format::fp8:
            // Codes up to 240 in magnitude, none of them a NaN.
            if (in_panel >= panel_scale_bytes(format) / 4) return bits & 0xf7f7f7f7u;
            return __float_as_uint(size / 240.0f * (1.0f + 0.2f * unit(bits)));
        case Format::bf16:
            return pack_bf16(size * unit(bits), size * unit(static_cast<uint32_t>(random >> 32)));
        case Format::f32:
            return __float_as_uint(size * unit(bits));
    }
    return 0;
}

__global__ void fill(uint32_t* data, uint64_t words, Format format, float size, uint64_t seed) {
    for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words;
         i += uint64_t{gridDim.x} * blockDim.x)
        data[i] = word_of(format, i, size, seed);
}

__global__ void arrange(uint32_t* panels, uint64_t words) {
    constexpr uint32_t kWords = panel_bytes(Format::mxfp4) / 4;
    for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words;
         i += uint64_t{gridDim.x} * blockDim.x)
        if (i % kWords >= panel_scale_bytes(Format::mxfp4) / 4) panels[i] = e2m1_for_gpu(panels[i]);
}

// A thread a word, and no more blocks than keep a card busy.
cudaLaunchConfig_t config_of(uint64_t words) {
    constexpr uint64_t kThreads = 256, kBlocksMax = 1024;
    cudaLaunchConfig_t config{};
    config.gridDim = static_cast<unsigned>(
        std::clamp<uint64_t>((words + kThreads - 1) / kThreads, 1, kBlocksMax));
    config.blockDim = kThreads;
    return config;
}

}  // namespace

cudaError_t arrange_mxfp4(std::byte* panels, uint64_t bytes) {
    const cudaLaunchConfig_t config = config_of(bytes / 4);
    return cudaLaunchKernelEx(&config, arrange, reinterpret_cast<uint32_t*>(panels), bytes / 4);
}

cudaError_t fill_panels(std::byte* data, uint64_t bytes, Format format, float size, uint64_t seed) {
    const cudaLaunchConfig_t config = config_of(bytes / 4);
    return cudaLaunchKernelEx(&config, fill, reinterpret_cast<uint32_t*>(data), bytes / 4, format,
                              size, seed);
}

cudaError_t fill_bf16(void* data, uint64_t count, float size, uint64_t seed) {
    const cudaLaunchConfig_t config = config_of(count / 2);
    return cudaLaunchKernelEx(&config, fill, static_cast<uint32_t*>(data), count / 2, Format::bf16,
                              size, seed);
}

}  // namespace tessera::gpu
