// From the plan's program to what blocks do between barriers: the program of one worker, whose
// tiles say what follows what, becomes phases that all blocks share. How a phase is cut among
// blocks is arithmetic of the kernel (block.cuh), the same for every step.
#pragma once

#include <vector>

#include "plan/program.h"
#include "runtime/gpu/model.h"
#include "runtime/gpu/weights.h"

namespace tessera::gpu {

// Where a model's layers keep keys and values in a sequence's cache.
struct CacheLayout {
    std::vector<CachePlace> layers;
    uint64_t bytes = 0;

    CacheLayout(const Shape& shape, uint32_t ranks, uint32_t context);
};

// What phases want of a block's shared memory.
struct SharedNeeds {
    uint32_t activations = 0;    // bytes
    uint32_t sums = 0;           // units of a group of more than two
    uint32_t contributions = 0;  // bytes
    bool direct = true;          // every expert's unit of down is one item

    // What serves either.
    SharedNeeds with(const SharedNeeds& other) const;
};

struct PhaseList {
    std::vector<Phase> phases;
    SharedNeeds needs;
    uint32_t counters = 0;  // of arrivals
    uint64_t partial_floats = 0;
    uint64_t part_floats = 0;  // of attention: for all its queries
    uint32_t part_chunks = 0;
};

// Heads of one kind of attention on rank 0, for sequences of `context` positions.
Heads heads_of(const AttentionShape& a, uint32_t ranks, uint32_t angles, uint32_t context);

// The phases of a checked program for `blocks` blocks. Throws Error if the model has something that
// the kernels do not take (which layer, and what).
PhaseList phases_of(const Program& program, const DeviceWeights& weights, const CacheLayout& cache,
                    uint32_t blocks);

// What lies where, of `available` bytes: what is left is the ring. Throws Error if that is too
// short.
Shared lay_out(const SharedNeeds& needs, uint32_t available);

// Bytes of weights that a phase reads, of one expert where there are many.
uint64_t phase_bytes(const Phase& phase);

}  // namespace tessera::gpu
