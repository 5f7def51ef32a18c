// Random weights, written where they are used (fill.cu).
#pragma once

#include <cuda_runtime_api.h>

#include "tiles/packed.h"

namespace tessera::gpu {

// `bytes` of panels in tile order, of values up to about `size`.
cudaError_t fill_panels(std::byte* data, uint64_t bytes, Format format, float size, uint64_t seed);
// `count` bf16 values from -size to size.
cudaError_t fill_bf16(void* data, uint64_t count, float size, uint64_t seed);

}  // namespace tessera::gpu
