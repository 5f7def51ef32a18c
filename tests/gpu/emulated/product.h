// The product of an mma.m16n8k16 of bf16, by all lanes of a warp at once.
#pragma once

#include <cstdint>

#include "gpu/emulated/threads.h"

namespace emulated {

// What a lane has of it, as the instruction deals it out.
struct Fragments {
    uint32_t operands[6] = {};  // a0 to a3, b0, b1
    float sums[4] = {};
};

// Adds the products to the lanes' sums, each rounded once.
void multiply(Fragments* const (&lanes)[kLanes]);

}  // namespace emulated
