// The published configurations of the family, for those who ask about a model without having it:
// facts of its config.json, as far as the engine reads them or must pass over them, with the
// left-overs that come along.
#pragma once

#include <optional>
#include <string_view>

#include "model/shape.h"

namespace tessera {

inline constexpr const char* kProConfig = R"({
  "architectures": ["MiMoV2ForCausalLM"],
  "model_type": "mimo_v2",
  "hidden_size": 6144, "num_hidden_layers": 70,
  "num_attention_heads": 128, "swa_num_attention_heads": 128,
  "num_key_value_heads": 8, "swa_num_key_value_heads": 8,
  "head_dim": 192, "swa_head_dim": 192,
  "v_head_dim": 128, "swa_v_head_dim": 128,
  "partial_rotary_factor": 0.334,
  "rope_theta": 10000000, "swa_rope_theta": 10000,
  "sliding_window": 128, "sliding_window_size": 128, "attention_chunk_size": 128,
  "hybrid_layer_pattern": [0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0,
                           1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0,
                           1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0],
  "attention_value_scale": 0.612,
  "add_full_attention_sink_bias": false, "add_swa_attention_sink_bias": true,
  "attention_projection_layout": "fused_qkv",
  "attention_bias": false,
  "intermediate_size": 16384, "moe_intermediate_size": 2048,
  "moe_layer_freq": [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                     1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                     1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
  "n_routed_experts": 384, "num_experts_per_tok": 8, "n_shared_experts": null,
  "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
  "norm_topk_prob": true, "routed_scaling_factor": null,
  "hidden_act": "silu",
  "layernorm_epsilon": 1e-05,
  "max_position_embeddings": 1048576, "vocab_size": 152576,
  "tie_word_embeddings": false,
  "quantization_config": {
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
    "weight_block_size": [128, 128]
  },
})";

inline constexpr const char* kFlashConfig = R"({
  "architectures": ["MiMoV2FlashForCausalLM"],
  "model_type": "mimo_v2_flash",
  "hidden_size": 4096, "num_hidden_layers": 48,
  "num_attention_heads": 64, "swa_num_attention_heads": 64,
  "num_key_value_heads": 4, "swa_num_key_value_heads": 8,
  "head_dim": 192, "swa_head_dim": 192,
  "v_head_dim": 128, "swa_v_head_dim": 128,
  "partial_rotary_factor": 0.334,
  "rope_theta": 5000000, "swa_rope_theta": 10000,
  "sliding_window": 128, "sliding_window_size": 128, "attention_chunk_size": 128,
  "hybrid_layer_pattern": [0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0,
                           1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0],
  "attention_value_scale": 0.707,
  "add_full_attention_sink_bias": false, "add_swa_attention_sink_bias": true,
  "attention_bias": false,
  "intermediate_size": 16384, "moe_intermediate_size": 2048,
  "moe_layer_freq": [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                     1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
  "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": null,
  "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
  "norm_topk_prob": true, "routed_scaling_factor": null,
  "hidden_act": "silu",
  "layernorm_epsilon": 1e-05,
  "max_position_embeddings": 262144, "vocab_size": 152576,
  "tie_word_embeddings": false,
  "quantization_config": {
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
    "weight_block_size": [128, 128]
  }
})";

inline constexpr const char* kProDrafterConfig = R"({
  "model_type": "qwen3",
  "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 5,
  "num_attention_heads": 128, "num_key_value_heads": 8, "head_dim": 128, "v_head_dim": 128,
  "partial_rotary_factor": 0.5, "rope_theta": 10000, "sliding_window": 1024,
  "rms_norm_eps": 1e-05, "attention_bias": false,
  "block_size": 8, "num_target_layers": 70, "vocab_size": 152064,
  "dflash_config": {
    "target_layer_ids": [0, 15, 31, 47, 69],
    "mask_token_id": 151669, "block_size": 8, "num_anchors": 4096, "loss_decay_gamma": 7.0,
    "use_swa": true, "swa_window_size": 1024, "backbone_rotary_base": 5000000,
    "attention_value_scale": 0.612, "attention_sink_bias": true
  }
})";

struct PublishedModel {
    Shape shape;
    std::optional<DrafterShape> drafter;
};

// "mimo-v2.5-pro" (MXFP4 experts, with its drafter), "mimo-v2-flash" (FP8); none for other names.
std::optional<PublishedModel> published_model(std::string_view name);

}  // namespace tessera
