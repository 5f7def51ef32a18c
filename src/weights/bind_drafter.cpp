#include "weights/bind_drafter.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "base/error.h"
#include "base/numbers.h"
#include "weights/binder.h"
#include "weights/inventory.h"

namespace tessera {
namespace {

void check_mask(const Checkpoint& checkpoint, const DrafterShape& shape,
                const MaskEmbedding& mask) {
    const std::string source = (checkpoint.folder / "mask_embedding.pt").string();
    if (mask.mask_token_id != shape.mask_token) {
        fail("{}: mask_token_id is {}, expected {} as in config.json", source, mask.mask_token_id,
             shape.mask_token);
    }
    if (mask.embedding.size() != shape.hidden) {
        fail("{}: the embedding has {} values, expected hidden_size {}", source,
             mask.embedding.size(), shape.hidden);
    }
}

}  // namespace

DrafterWeights bind_drafter(const Checkpoint& checkpoint, const DrafterShape& shape,
                            const MaskEmbedding& mask) {
    DrafterWeights weights{};
    weights.shape = shape;
    weights.bytes = check_tensors(checkpoint, drafter_inventory(shape));
    check_mask(checkpoint, shape, mask);
    std::ranges::transform(mask.embedding, std::back_inserter(weights.mask_embedding),
                           [](bf16 value) { return to_float(value); });

    const Binder binder(checkpoint);
    const AttentionShape& a = shape.attention;
    const uint32_t hidden = shape.hidden;
    weights.fc = binder.matrix("fc", hidden, shape.taps.size() * uint64_t{hidden});
    weights.hidden_norm = binder.vector("hidden_norm.weight");
    weights.norm = binder.vector("norm.weight");
    for (uint32_t i = 0; i < shape.layers; ++i) {
        const std::string at = "layers." + std::to_string(i);
        const std::string attention = at + ".self_attn.";
        DrafterLayerWeights& layer = weights.layers.emplace_back();
        layer.input_norm = binder.vector(at + ".input_layernorm.weight");
        layer.post_norm = binder.vector(at + ".post_attention_layernorm.weight");
        layer.q = binder.matrix(attention + "q_proj", a.q_rows(), hidden);
        layer.k = binder.matrix(attention + "k_proj", a.k_rows(), hidden);
        layer.v = binder.matrix(attention + "v_proj", a.v_rows(), hidden);
        layer.o = binder.matrix(attention + "o_proj", hidden, a.o_columns());
        layer.q_norm = binder.vector(attention + "q_norm.weight");
        layer.k_norm = binder.vector(attention + "k_norm.weight");
        if (a.sink) layer.sink = binder.vector(attention + "attention_sink_bias");
        layer.dense = binder.feed_forward(at + ".mlp", shape.width, hidden);
    }
    return weights;
}

}  // namespace tessera
