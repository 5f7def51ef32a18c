#include "model/shape.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "model/keys.h"

namespace tessera {
namespace {

// Bounds of what any published or tiny model has; past them a product of two fields could overflow.
constexpr uint32_t kWidthMax = 1u << 20;
constexpr uint32_t kLayersMax = 1024;
constexpr uint32_t kContextMax = 1u << 28;

// int(head_dim * factor) as the published code has it; an odd result would leave a dim unpaired.
uint32_t rotary_dims(const Keys& keys, uint32_t head_dim) {
    const double factor = keys.has("partial_rotary_factor")
                              ? keys.at("partial_rotary_factor").is_number()
                                    ? keys.at("partial_rotary_factor").get<double>()
                                    : -1.0
                              : 1.0;
    const double dims = std::floor(head_dim * factor);
    if (!(dims >= 2 && dims <= head_dim) || std::fmod(dims, 2) != 0) {
        fail(
            "{}: \"partial_rotary_factor\" {} of head size {} gives {} rotary dims, expected an "
            "even number from 2",
            keys.source(), Keys::shown(keys.at("partial_rotary_factor")), head_dim, dims);
    }
    return static_cast<uint32_t>(dims);
}

AttentionShape attention_shape(const Keys& keys, bool sliding) {
    const auto key = [&](const char* full, const char* swa) {
        return sliding && keys.has(swa) ? swa : full;
    };
    AttentionShape a{};
    a.heads = keys.count(key("num_attention_heads", "swa_num_attention_heads"), 1, 4096);
    a.kv_heads = keys.count(key("num_key_value_heads", "swa_num_key_value_heads"), 1, 4096);
    a.head_dim = keys.count(key("head_dim", "swa_head_dim"), 2, 4096);
    a.v_head_dim = keys.count(key("v_head_dim", "swa_v_head_dim"), 1, 4096);
    if (a.head_dim % 2 != 0)
        fail("{}: {} is {}, expected an even number", keys.source(),
             key("head_dim", "swa_head_dim"), a.head_dim);
    a.rotary_dims = rotary_dims(keys, a.head_dim);
    a.rope_theta = keys.real(key("rope_theta", "swa_rope_theta"), 1.0, 1e12);
    a.window = sliding ? keys.count("sliding_window", 1, kContextMax) : 0;
    a.sink =
        keys.flag(sliding ? "add_swa_attention_sink_bias" : "add_full_attention_sink_bias", false);
    if (a.heads % a.kv_heads != 0) {
        fail("{}: {} attention heads are not a multiple of {} kv heads", keys.source(), a.heads,
             a.kv_heads);
    }
    return a;
}

Quantization parse_quantization(const Keys& outer) {
    Quantization q;
    if (!outer.has("quantization_config")) return q;
    const Keys keys(outer.at("quantization_config"), outer.source());
    if (keys.text("quant_method") != "fp8") {
        fail(
            "{}: quant_method {} is not supported, only \"fp8\" (with store_dtype \"mxfp4\" or "
            "without)",
            outer.source(), Keys::shown(keys.at("quant_method")));
    }
    q.fp8 = true;
    keys.only("fmt", "e4m3");
    keys.only("weight_block_size", Json::array({128, 128}));
    keys.only("store_dtype", "mxfp4");
    keys.only("mxfp4_block_size", 32);
    q.mxfp4_experts = keys.has("store_dtype");
    if (keys.has("ignored_layers")) {
        const Json& list = keys.at("ignored_layers");
        if (!list.is_array())
            fail("{}: \"ignored_layers\" must be a list of names", outer.source());
        for (const Json& name : list) {
            if (!name.is_string())
                fail("{}: \"ignored_layers\" holds {}, expected names", outer.source(),
                     Keys::shown(name));
            q.kept_in_bf16.insert(name.get<std::string>());
        }
    }
    return q;
}

void refuse_what_is_not_there(const Keys& keys) {
    keys.only("tie_word_embeddings", false);
    keys.only("attention_bias", false);
    keys.only("hidden_act", "silu");
    keys.only("n_shared_experts", 0);
    keys.only("n_group", 1);
    keys.only("topk_group", 1);
    keys.only("topk_method", "noaux_tc");
    keys.only("scoring_func", "sigmoid");
    keys.only("rope_scaling", Json::object({{"rope_type", "default"}}));
}

}  // namespace

Shape parse_shape(const Json& config, std::string_view source) {
    const Keys keys(config, source);
    Shape s{};
    s.model_type = keys.text("model_type");
    if (s.model_type != "mimo_v2" && s.model_type != "mimo_v2_flash") {
        fail("{}: model_type {} is not supported, only \"mimo_v2\" and \"mimo_v2_flash\"", source,
             Keys::shown(keys.at("model_type")));
    }
    refuse_what_is_not_there(keys);
    s.hidden = keys.count("hidden_size", 1, kWidthMax);
    s.layers = keys.count("num_hidden_layers", 1, kLayersMax);
    s.vocab = keys.count("vocab_size", 2, 1u << 24);
    s.context_max = keys.count("max_position_embeddings", 1, kContextMax);
    s.norm_epsilon = keys.real("layernorm_epsilon", 0, 1);

    s.full = attention_shape(keys, false);
    s.sliding = attention_shape(keys, true);
    s.is_sliding = keys.layer_flags("hybrid_layer_pattern", s.layers);
    s.value_scale =
        keys.has("attention_value_scale") ? keys.real("attention_value_scale", 1e-6, 1e6) : 1.0f;
    s.fused_qkv = keys.has("attention_projection_layout");
    keys.only("attention_projection_layout", "fused_qkv");
    if (s.fused_qkv) {
        for (const AttentionShape& a : {s.full, s.sliding}) {
            if (a.heads % s.qkv_chunks() == 0 && a.kv_heads % s.qkv_chunks() == 0) continue;
            fail(
                "{}: {} heads and {} kv heads cannot be cut into {} fused qkv chunks "
                "(num_key_value_heads)",
                source, a.heads, a.kv_heads, s.qkv_chunks());
        }
    }

    s.is_moe = keys.layer_flags("moe_layer_freq", s.layers);
    s.dense_width = keys.count("intermediate_size", 1, kWidthMax);
    s.expert_width = keys.count("moe_intermediate_size", 1, kWidthMax);
    s.experts = keys.count("n_routed_experts", 1, 65536);
    s.experts_per_token = keys.count("num_experts_per_tok", 1, s.experts);
    s.normalize_top_k = keys.flag("norm_topk_prob", true);
    s.routed_scale =
        keys.has("routed_scaling_factor") ? keys.real("routed_scaling_factor", 0, 1e6) : 1.0f;
    s.quantization = parse_quantization(keys);
    if (s.quantization.mxfp4_experts && (s.hidden % 32 != 0 || s.expert_width % 32 != 0)) {
        fail(
            "{}: MXFP4 experts need sizes in blocks of 32, found hidden_size {} and "
            "moe_intermediate_size {}",
            source, s.hidden, s.expert_width);
    }
    return s;
}

Shape layers_of(const DrafterShape& d, const Shape& target) {
    Shape s{};
    s.model_type = "dflash";
    s.hidden = d.hidden;
    s.layers = d.layers;
    s.vocab = target.vocab;
    s.context_max = target.context_max;
    s.norm_epsilon = d.norm_epsilon;
    s.full = s.sliding = d.attention;
    s.is_sliding.assign(d.layers, d.attention.window > 0);
    s.value_scale = d.value_scale;
    s.dense_width = d.width;
    s.is_moe.assign(d.layers, false);
    s.experts_per_token = 1;  // rows of a feed-forward for each row of the step
    s.routed_scale = 1;
    return s;
}

DrafterShape parse_drafter_shape(const Json& config, const Shape& target, std::string_view source) {
    const Keys keys(config, source);
    const Keys dflash(keys.at("dflash_config"), source);
    keys.only("attention_bias", false);
    keys.only("is_causal", false);
    DrafterShape d{};
    d.hidden = keys.count("hidden_size", 1, kWidthMax);
    if (d.hidden != target.hidden) {
        fail(
            "{}: the drafter's hidden_size is {}, the target's {}: this drafter is of another "
            "model",
            source, d.hidden, target.hidden);
    }
    d.layers = keys.count("num_hidden_layers", 1, kLayersMax);
    d.width = keys.count("intermediate_size", 1, kWidthMax);
    d.norm_epsilon = keys.real("rms_norm_eps", 0, 1);
    AttentionShape& a = d.attention;
    a.heads = keys.count("num_attention_heads", 1, 4096);
    a.kv_heads = keys.count("num_key_value_heads", 1, 4096);
    a.head_dim = keys.count("head_dim", 2, 4096);
    a.v_head_dim = keys.has("v_head_dim") ? keys.count("v_head_dim", 1, 4096) : a.head_dim;
    a.rotary_dims = rotary_dims(keys, a.head_dim);
    a.rope_theta = keys.real("rope_theta", 1.0, 1e12);
    a.window = dflash.flag("use_swa", false) ? dflash.count("swa_window_size", 1, kContextMax) : 0;
    a.sink = dflash.flag("attention_sink_bias", false);
    if (a.heads % a.kv_heads != 0)
        fail("{}: {} heads are not a multiple of {} kv heads", source, a.heads, a.kv_heads);
    d.value_scale = dflash.has("attention_value_scale")
                        ? dflash.real("attention_value_scale", 1e-6, 1e6)
                        : 1.0f;
    d.block = dflash.count("block_size", 2, 64);
    d.mask_token = dflash.count("mask_token_id", 0, std::numeric_limits<int32_t>::max());
    const Json& taps = dflash.at("target_layer_ids");
    if (!taps.is_array() || taps.empty()) fail("{}: \"target_layer_ids\" must list layers", source);
    for (const Json& tap : taps) {
        const uint32_t layer = dflash.count_of(tap, "target_layer_ids", 0, target.layers - 1);
        if (!d.taps.empty() && layer <= d.taps.back())
            fail("{}: \"target_layer_ids\" must ascend", source);
        d.taps.push_back(layer);
    }
    return d;
}

}  // namespace tessera
