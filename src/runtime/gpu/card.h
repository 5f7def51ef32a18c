// The card of this machine, and a runner on it: what the floors above see of CUDA, which is
// nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/gpu/runner.h"
#include "weights/pack.h"

namespace tessera::gpu {

struct Card {
    std::string name;
    uint32_t multiprocessors;
    uint32_t shared_bytes;  // that a block can have
    uint64_t free_bytes, total_bytes;
    int major;  // of the compute capability
};

// The first card; throws Error if there is none, or none that this build has code for.
Card find_card();
// Why there is none, or nothing.
std::string no_card();

// Copies the weights (of one rank) to the card and prepares it for sequences of `context` tokens.
// `drafter` may be null; neither is read later. Throws Error if they do not fit, or the model has
// something that the kernels do not take.
std::unique_ptr<Runner> make_runner(const PackedWeights& target, const PackedWeights* drafter,
                                    uint32_t context);

}  // namespace tessera::gpu
