// What is written to weights where they lie on the device: the GPU's order of bits, or random
// values (fill.cu). All of it on the default stream.
#pragma once

#include <cuda_runtime_api.h>

#include "tiles/packed.h"

namespace tessera::gpu {

// `bytes` of mxfp4 panels, from the CPU's order of bits to the GPU's (tiles/e2m1_gpu.h), in place.
cudaError_t arrange_mxfp4(std::byte* panels, uint64_t bytes);

// `bytes` of panels in tile order, as kernels read them, of values up to about `size`.
cudaError_t fill_panels(std::byte* data, uint64_t bytes, Format format, float size, uint64_t seed);
// `count` bf16 values from -size to size.
cudaError_t fill_bf16(void* data, uint64_t count, float size, uint64_t seed);

}  // namespace tessera::gpu
