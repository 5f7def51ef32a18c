// The published configurations of the family as JSON, with what the releases add to them.
#pragma once

#include <string>

#include "base/json.h"
#include "model/published.h"

namespace tessera::test {

inline Json published(const char* text) {
    return parse_json(text, "published", {.trailing_commas = true});
}

// `config` with every layer's o_proj listed under ignored_layers, as the releases do.
inline Json with_o_proj_ignored(Json config) {
    Json names = Json::array();
    for (uint32_t i = 0; i < config["num_hidden_layers"].get<uint32_t>(); ++i) {
        names.push_back("model.layers." + std::to_string(i) + ".self_attn.o_proj");
    }
    config["quantization_config"]["ignored_layers"] = std::move(names);
    return config;
}

// `config` with its routed experts in MXFP4.
inline Json with_mxfp4_experts(Json config) {
    config["quantization_config"]["store_dtype"] = "mxfp4";
    config["quantization_config"]["mxfp4_block_size"] = 32;
    return config;
}

inline Json pro_fp8_config() {
    return with_o_proj_ignored(published(kProConfig));
}
inline Json pro_fp4_config() {
    return with_mxfp4_experts(pro_fp8_config());
}
inline Json pro_drafter_config() {
    return published(kProDrafterConfig);
}
inline Json flash_config() {
    return with_o_proj_ignored(published(kFlashConfig));
}

// V2.5-Flash: V2-Flash in the code path of Pro.
inline Json flash25_config() {
    Json config = flash_config();
    config["architectures"] = {"MiMoV2ForCausalLM"};
    config["model_type"] = "mimo_v2";
    config["attention_projection_layout"] = "fused_qkv";
    config["rope_theta"] = 10000000;
    config["max_position_embeddings"] = 1048576;
    config["vision_config"] = {{"depth", 28}};
    config["audio_config"] = {{"layers", 24}};
    return config;
}

// V2.6-Flash-RL.
inline Json flash26_config() {
    Json config = with_mxfp4_experts(flash25_config());
    config["layernorm_epsilon"] = 1e-6;
    config["moe_router_dtype"] = "bfloat16";
    return config;
}

}  // namespace tessera::test
