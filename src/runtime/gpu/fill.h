// What is written to weights where they lie on the device: the GPU's order, or random
// values (fill.cu). All of it on the default stream.
#pragma once

#include <cuda_runtime_api.h>

#include "tiles/packed.h"

namespace tessera::gpu {

// `bytes` of panels, from the CPU's order to the GPU's, in place: of bits, where they are mxfp4 or
// fp8 (tiles/e2m1_gpu.h, e4m3_gpu.h), of fp8's scales, and of groups and their halves
// (tiles/matrix_gpu.cuh).
// A row of 128 fp8 columns with a code that is no number gets a scale that is none.
cudaError_t arrange_panels(std::byte* panels, uint64_t bytes, Format format);

// `bytes` of panels, as kernels read them, of values up to about `size`.
cudaError_t fill_panels(std::byte* data, uint64_t bytes, Format format, float size, uint64_t seed);
// `count` bf16 values from -size to size.
cudaError_t fill_bf16(void* data, uint64_t count, float size, uint64_t seed);

}  // namespace tessera::gpu
