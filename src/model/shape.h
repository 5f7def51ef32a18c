// What the network is, in numbers: read once from config.json, then plain fields that everything
// else trusts. Facts and key names: the published mimo_v2 and mimo_v2_flash configurations.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace tessera {

// One kind of attention; a model has a full one and a sliding one.
struct AttentionShape {
    uint32_t heads;
    uint32_t kv_heads;     // heads is a multiple: query head h reads kv head h / (heads / kv_heads)
    uint32_t head_dim;     // of q and k
    uint32_t v_head_dim;   // of v
    uint32_t rotary_dims;  // the first of head_dim that rotate, even; dim i pairs with i +
                           // rotary_dims / 2
    float rope_theta;
    uint32_t window;  // keys a query sees, itself included; 0 is all
    bool sink;        // one learned logit a query head

    uint32_t q_rows() const { return heads * head_dim; }
    uint32_t k_rows() const { return kv_heads * head_dim; }
    uint32_t v_rows() const { return kv_heads * v_head_dim; }
    uint32_t o_columns() const { return heads * v_head_dim; }
};

// How the linear layers are stored, from quantization_config.
struct Quantization {
    bool fp8 = false;                    // e4m3 with 128 x 128 scales
    bool mxfp4_experts = false;          // the routed experts in MXFP4 instead
    std::set<std::string> kept_in_bf16;  // ignored_layers: module names without ".weight"
};

struct Shape {
    std::string model_type;  // mimo_v2 or mimo_v2_flash
    uint32_t hidden;
    uint32_t layers;
    uint32_t vocab;
    uint32_t context_max;  // tokens
    float norm_epsilon;

    AttentionShape full;
    AttentionShape sliding;
    std::vector<bool> is_sliding;  // by layer
    float value_scale;             // v is multiplied by it before it is cached
    bool fused_qkv;                // one qkv_proj of qkv_chunks() chunks [Q | K | V]

    uint32_t dense_width;
    uint32_t expert_width;
    std::vector<bool> is_moe;  // by layer
    uint32_t experts;
    uint32_t experts_per_token;
    bool normalize_top_k;  // the chosen experts' weights are divided by their sum
    float routed_scale;

    Quantization quantization;

    const AttentionShape& attention(uint32_t layer) const {
        return is_sliding[layer] ? sliding : full;
    }
    // The full kind's kv heads, for both kinds of layer: the checkpoint's tensor-parallel chunks.
    uint32_t qkv_chunks() const { return full.kv_heads; }
};

// Throws Error naming `source`, the key, what was expected and what was found. Features that the
// family's code path does not have (shared experts, groups, tied or biased weights, rope scaling)
// are refused rather than ignored.
Shape parse_shape(const Json& config, std::string_view source);

// The DFlash drafter, from dflash/config.json. Its vocabulary is not read: embedding and head are
// the target's, and published configs disagree with it.
struct DrafterShape {
    uint32_t hidden;
    uint32_t layers;
    uint32_t width;  // of the feed-forward
    AttentionShape attention;
    float value_scale;
    float norm_epsilon;
    uint32_t block;  // rows: the anchor and block - 1 drafted tokens
    uint32_t mask_token;
    std::vector<uint32_t> taps;  // target layers whose residual stream is read, ascending
};

// The drafter's layers as those of a dense model that shares the target's vocabulary: what plan and
// runtime walk. Every layer is of one kind: sliding if the drafter has a window, else full.
Shape layers_of(const DrafterShape& drafter, const Shape& target);

// Throws Error naming `source` and the key, also when the drafter does not fit `target`.
DrafterShape parse_drafter_shape(const Json& config, const Shape& target, std::string_view source);

}  // namespace tessera
