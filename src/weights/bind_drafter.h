// The drafter's names become fields, once: as bind.h for the target, over the dflash/ folder. It
// has no embedding and no head (they are the target's) but one row of its own, the mask's.
#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/mask_embedding.h"
#include "model/shape.h"
#include "weights/bind.h"

namespace tessera {

struct DrafterLayerWeights {
    std::vector<float> input_norm, post_norm;  // hidden
    Matrix q;                                  // heads * head_dim, hidden
    Matrix k;                                  // kv_heads * head_dim, hidden
    Matrix v;                                  // kv_heads * v_head_dim, hidden
    Matrix o;                                  // hidden, heads * v_head_dim
    std::vector<float> q_norm, k_norm;         // head_dim
    std::vector<float> sink;                   // heads; empty without sinks
    FeedForward dense;
};

struct DrafterWeights {
    DrafterShape shape;
    Matrix fc;                             // hidden, taps * hidden
    std::vector<float> hidden_norm, norm;  // hidden
    std::vector<float> mask_embedding;     // hidden: from mask_embedding.pt
    std::vector<DrafterLayerWeights> layers;
    uint64_t bytes;  // of every bound tensor, as stored; mask_embedding.pt is not one
};

// Binds all tensors that drafter_inventory(shape) lists, after check_tensors. `checkpoint` is the
// dflash/ folder and must outlive the weights; `mask` is its mask_embedding.pt, and is copied.
// Throws Error naming what is wrong, with expected and found: a tensor, the mask's token (not the
// config's mask_token_id), its length (not hidden).
DrafterWeights bind_drafter(const Checkpoint& checkpoint, const DrafterShape& shape,
                            const MaskEmbedding& mask);

}  // namespace tessera
