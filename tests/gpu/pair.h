// A small target and its drafter, as a card takes them.
#pragma once

#include "runtime/support.h"

namespace tessera::test {

struct Pair {
    Pair() : weights(bind_drafter(made.checkpoint, shape, seeded_mask(shape, 5))) {}

    // A drafter's values have to be as wide as its keys here.
    DrafterShape shape = toy_drafter_shape({{"head_dim", 32}, {"v_head_dim", 32}});
    Toy toy{toy_shape({{"head_dim", 32}, {"swa_head_dim", 32}})};
    SeededCheckpoint made = seeded_checkpoint(shape, 5);
    DrafterWeights weights;
    PackedWeights target = toy.pack();
    PackedWeights drafter = pack_drafter(
        weights, target, {.ranks = 1, .threads = 1, .progress = {}, .drop = {}, .fp8 = Fp8::keep});
};

}  // namespace tessera::test
