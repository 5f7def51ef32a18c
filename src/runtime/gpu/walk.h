// Launches of the kernel (walk.cuh).
#pragma once

#include <cuda_runtime_api.h>

#include "runtime/gpu/model.h"

namespace tessera::gpu {

// Phases [begin, end) of a step. Pointers to `phases` and `step` are the device's, `network` is
// copied.
struct Launch {
    const Network* network;
    const Phase* phases;
    uint32_t begin, end;
    const Step* step;
    uint64_t passed;  // signals of the network's barrier before this launch
    uint32_t blocks;
    bool alone;  // cooperative: all blocks at once, barriers between phases. Else one phase, or
                 // phases without a barrier
};

// A kernel that walks phases.
struct Kernel {
    // Once, before the first launch: lets a block have so much shared memory.
    cudaError_t (*prepare)(uint32_t shared_bytes);
    cudaError_t (*launch)(const Launch& launch, cudaStream_t stream);
};
extern const Kernel kWalk;
extern const Kernel kWatchedWalk;  // the same, with all of a stamp

}  // namespace tessera::gpu
