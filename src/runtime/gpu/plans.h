// The programs that a GPU machine's phases are made from.
#pragma once

#include "plan/program.h"
#include "runtime/gpu/weights.h"

namespace tessera::gpu {

// A step of the target: 1 to kRowsMax rows, with the taps that a drafter wants.
Program target_program(const DeviceWeights& weights, uint32_t context,
                       const DeviceWeights* drafter);

// A drafter's block behind at most kRowsMax rows of context; or the context alone.
Program block_program(const DeviceWeights& drafter, uint32_t context);
Program context_program(const DeviceWeights& drafter, uint32_t context);

}  // namespace tessera::gpu
