#include <algorithm>

#include "runtime/gpu/fill.h"
#include "tiles/e2m1_gpu.h"
#include "tiles/e4m3_gpu.h"
#include "tiles/instructions_gpu.cuh"
#include "tiles/matrix_gpu.cuh"

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
            if (in_panel >= panel_scale_bytes(format) / 4) return bits;
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

// Scales of fp8 as the GPU has them, before codes are: those of a row with a code that is no number
// become none either.
__global__ void arrange_e4m3_scales(uint32_t* panels, uint64_t scales) {
    constexpr uint32_t kGroups = kPanelColumns / 4;
    for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < scales;
         i += uint64_t{gridDim.x} * blockDim.x) {
        uint32_t* const scale =
            panels + i / kUnitRows * (panel_bytes(Format::fp8) / 4) + i % kUnitRows;
        bool numbers = true;
        for (uint32_t group = 0; group < kGroups; ++group) {
            const uint32_t codes = scale[(1 + group) * kUnitRows] & 0x7f7f7f7fu;
            numbers = numbers && ((codes + 0x01010101u) & 0x80808080u) == 0;
        }
        *scale = e4m3_scale_for_gpu(numbers ? __uint_as_float(*scale) : NAN);
    }
}

constexpr uint32_t kGroupWords = kGroupBytes / 4, kHalfWords = kGroupWords / 2,
                   kPanelBlocks = kPanelColumns / kBlockColumns;

// Words of mxfp4 and fp8 get the GPU's order of bits, groups of a block of columns and their halves
// the GPU's places. A thread has one word of each half of a block's groups, all in registers.
template <Format format>
__global__ void arrange(uint32_t* panels, uint64_t count) {
    constexpr uint32_t kGroups = 4 * lane_groups(format);
    const auto arranged = [](uint32_t word) {
        return format == Format::mxfp4 ? e2m1_for_gpu(word)
               : format == Format::fp8 ? e4m3_for_gpu(word)
                                       : word;
    };
    for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
         i += uint64_t{gridDim.x} * blockDim.x) {
        const uint64_t block = i / kHalfWords, panel = block / kPanelBlocks;
        uint32_t* const at = panels +
                             (panel * panel_bytes(format) + panel_scale_bytes(format)) / 4 +
                             block % kPanelBlocks * (kGroups * kGroupWords) + i % kHalfWords;
        uint32_t low[kGroups], high[kGroups];
#pragma unroll
        for (uint32_t group = 0; group < kGroups; ++group) {
            const uint32_t place = group_place(format, group);
            low[place] = arranged(at[group * kGroupWords]);
            high[place] = arranged(at[group * kGroupWords + kHalfWords]);
        }
#pragma unroll
        for (uint32_t place = 0; place < kGroups; ++place) {
            const bool swaps = swaps_halves(place);
            at[place * kGroupWords] = swaps ? high[place] : low[place];
            at[place * kGroupWords + kHalfWords] = swaps ? low[place] : high[place];
        }
    }
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

cudaError_t arrange_panels(std::byte* panels, uint64_t bytes, Format format) {
    if (format == Format::fp8) {
        const uint64_t scales = bytes / panel_bytes(format) * kUnitRows;
        const cudaLaunchConfig_t of_scales = config_of(scales);
        const cudaError_t arranged = cudaLaunchKernelEx(
            &of_scales, arrange_e4m3_scales, reinterpret_cast<uint32_t*>(panels), scales);
        if (arranged != cudaSuccess) return arranged;
    }
    const uint64_t words = bytes / panel_bytes(format) * kPanelBlocks * kHalfWords;
    const cudaLaunchConfig_t config = config_of(words);
    const auto by = [&](void (*kernel)(uint32_t*, uint64_t)) {
        return cudaLaunchKernelEx(&config, kernel, reinterpret_cast<uint32_t*>(panels), words);
    };
    return format == Format::mxfp4  ? by(arrange<Format::mxfp4>)
           : format == Format::fp8  ? by(arrange<Format::fp8>)
           : format == Format::bf16 ? by(arrange<Format::bf16>)
                                    : by(arrange<Format::f32>);
}

cudaError_t fill_panels(std::byte* data, uint64_t bytes, Format format, float size, uint64_t seed) {
    const cudaLaunchConfig_t config = config_of(bytes / 4);
    const cudaError_t filled = cudaLaunchKernelEx(&config, fill, reinterpret_cast<uint32_t*>(data),
                                                  bytes / 4, format, size, seed);
    // So that a seed's weights are the same whatever the GPU's order is.
    return filled != cudaSuccess ? filled : arrange_panels(data, bytes, format);
}

cudaError_t fill_bf16(void* data, uint64_t count, float size, uint64_t seed) {
    const cudaLaunchConfig_t config = config_of(count / 2);
    return cudaLaunchKernelEx(&config, fill, static_cast<uint32_t*>(data), count / 2, Format::bf16,
                              size, seed);
}

}  // namespace tessera::gpu
