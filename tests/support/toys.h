// Small models with every feature of the family, as configs; support/seeded.h fills them.
#pragma once

#include <string>

#include "base/json.h"
#include "model/shape.h"

namespace tessera::test {

// Published keys; what a test changes, it overwrites.
inline Json toy_config() {
    return Json::parse(R"({
        "model_type": "mimo_v2", "hidden_size": 160, "num_hidden_layers": 4, "vocab_size": 203,
        "num_attention_heads": 8, "num_key_value_heads": 2,
        "swa_num_attention_heads": 8, "swa_num_key_value_heads": 4,
        "head_dim": 24, "swa_head_dim": 24, "v_head_dim": 16, "swa_v_head_dim": 16,
        "partial_rotary_factor": 0.334, "rope_theta": 10000000, "swa_rope_theta": 10000,
        "sliding_window": 9, "hybrid_layer_pattern": [0, 1, 1, 0],
        "attention_value_scale": 0.612, "add_swa_attention_sink_bias": true,
        "attention_projection_layout": "fused_qkv",
        "intermediate_size": 256, "moe_intermediate_size": 256, "moe_layer_freq": [0, 1, 1, 1],
        "n_routed_experts": 12, "num_experts_per_tok": 3, "norm_topk_prob": true,
        "layernorm_epsilon": 1e-5, "max_position_embeddings": 4096, "tie_word_embeddings": false,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128],
                                "store_dtype": "mxfp4", "mxfp4_block_size": 32,
                                "ignored_layers": ["model.layers.0.self_attn.o_proj",
                                                   "model.layers.1.self_attn.o_proj",
                                                   "model.layers.2.self_attn.o_proj",
                                                   "model.layers.3.self_attn.o_proj"]}
    })");
}

inline Shape toy_shape(const Json& changes = Json::object()) {
    Json config = toy_config();
    config.merge_patch(changes);
    return parse_shape(config, "toy");
}

// A drafter for toy_config(), in the published form but with values narrower than keys.
inline Json toy_drafter_config() {
    return Json::parse(R"({
        "model_type": "qwen3", "hidden_size": 160, "num_hidden_layers": 2, "vocab_size": 200,
        "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 32, "v_head_dim": 24, "partial_rotary_factor": 0.5, "rope_theta": 10000,
        "rms_norm_eps": 1e-5, "attention_bias": false,
        "dflash_config": {"target_layer_ids": [0, 2, 3], "mask_token_id": 199, "block_size": 8,
                          "use_swa": true, "swa_window_size": 12, "attention_value_scale": 0.612,
                          "attention_sink_bias": true}
    })");
}

inline DrafterShape toy_drafter_shape(const Json& changes = Json::object()) {
    Json config = toy_drafter_config();
    config.merge_patch(changes);
    return parse_drafter_shape(config, toy_shape(), "toy drafter");
}

}  // namespace tessera::test
