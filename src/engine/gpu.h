// The engine's way to a card. A build without nvcc has none, and says so when it is asked for one.
#pragma once

#include <memory>

#include "runtime/gpu/card.h"

#include "engine/backend.h"

namespace tessera {

// What a build with GPU code can do.
struct GpuCode {
    std::string (*no_card)();
    gpu::Card (*find_card)();
    std::unique_ptr<gpu::Runner> (*make_runner)(const PackedWeights& target,
                                                const PackedWeights* drafter, uint32_t context);
};
// Null in a build without: gpu_code/, one of two, as CMake found nvcc or not.
extern const GpuCode* const kGpuCode;

// The card to decode on. Throws Error that says what was looked for, and what would help.
gpu::Card wanted_card();

// The weights have been packed for one rank with their fp8 as it is, and are let go. `context`:
// tokens of a text at most.
std::unique_ptr<Backend> make_gpu_backend(std::unique_ptr<CpuWeights> weights, uint32_t context);

// The same with what runs the steps; `shape` and `drafter` (null: none) of the weights that it has.
std::unique_ptr<Backend> make_gpu_backend(std::unique_ptr<gpu::Runner> runner, const Shape& shape,
                                          const DrafterShape* drafter, uint32_t context);

}  // namespace tessera
