// Rounds on a card: what one launch of the kernel (rounds.cuh) is told.
#pragma once

#include <cuda_runtime_api.h>

#include "runtime/gpu/runner.h"

namespace tessera::gpu {

// Rounds of a launch at most: each has a token, and no run has more tokens.
inline constexpr uint32_t kRoundsMax = 64;

// One of the two networks that take turns, and the phases of its step.
inline constexpr uint32_t kTarget = 0, kDrafter = 1;
struct Turn {
    Network network;
    const Phase* phases;
    uint32_t count;
};

// Pointers are the device's unless a comment says otherwise.
struct RoundsLaunch {
    // The target's and the drafter's, of the same `shared` and `barrier`, which is zero at the
    // launch. Without drafts the drafter's is not read.
    Turn turns[2];
    RoundsInput input;
    uint32_t blocks;
    uint32_t layers;  // of the target

    // What blocks find in their shares of the vocabulary: [row][block]. What is looked for several
    // times has two places, in turn: a block may write while another still reads.
    uint64_t* tops;
    uint64_t* bests[2];
    double* above[2];  // weights, and those of all
    double* all[2];
    float* sums;
    const uint32_t* stop;  // what the host writes to ask for an end
    uint32_t* stopping;    // what was seen of it

    // The host's memory. A round is there before `made` counts it.
    Round* rounds;  // kRoundsMax
    uint64_t* made;
};

cudaError_t prepare_rounds(uint32_t shared_bytes);
cudaError_t launch_rounds(const RoundsLaunch& launch, cudaStream_t stream);
// Of the kernel's own, beside what a network's layout takes.
uint32_t rounds_static_bytes();

}  // namespace tessera::gpu
