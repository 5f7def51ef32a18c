// Published configurations give the published numbers; any field that is not what it should be, and
// any feature that the family lacks, is refused by file and key.
#include "model/shape.h"

#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/refusal.h"

#include "support/published.h"

namespace tessera {
namespace {

using test::refusal;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kSource = "folder/config.json";

std::string refused(const Json& config) {
    return refusal([&] { parse_shape(config, kSource); });
}

std::vector<uint32_t> full_layers(const Shape& s) {
    std::vector<uint32_t> full;
    for (uint32_t i = 0; i < s.layers; ++i) {
        if (!s.is_sliding[i]) full.push_back(i);
    }
    return full;
}

TEST(Shape, Pro) {
    const Shape s = parse_shape(test::pro_fp8_config(), kSource);
    EXPECT_EQ(s.model_type, "mimo_v2");
    EXPECT_EQ(s.hidden, 6144u);
    EXPECT_EQ(s.layers, 70u);
    EXPECT_EQ(s.vocab, 152576u);
    EXPECT_EQ(s.context_max, 1048576u);
    EXPECT_EQ(s.norm_epsilon, 1e-5f);
    for (const AttentionShape& a : {s.full, s.sliding}) {
        EXPECT_EQ(a.heads, 128u);
        EXPECT_EQ(a.kv_heads, 8u);
        EXPECT_EQ(a.head_dim, 192u);
        EXPECT_EQ(a.v_head_dim, 128u);
        EXPECT_EQ(a.rotary_dims, 64u);
        EXPECT_EQ(a.q_rows() + a.k_rows() + a.v_rows(), 27136u);
        EXPECT_EQ(a.o_columns(), 16384u);
    }
    EXPECT_EQ(s.full.rope_theta, 1e7f);
    EXPECT_EQ(s.sliding.rope_theta, 1e4f);
    EXPECT_EQ(s.full.window, 0u);
    EXPECT_EQ(s.sliding.window, 128u);
    EXPECT_FALSE(s.full.sink);
    EXPECT_TRUE(s.sliding.sink);
    EXPECT_THAT(full_layers(s), ElementsAre(0, 7, 15, 23, 31, 39, 47, 55, 62, 69));
    EXPECT_EQ(s.value_scale, 0.612f);
    EXPECT_TRUE(s.fused_qkv);
    EXPECT_EQ(s.qkv_chunks(), 8u);
    EXPECT_EQ(s.dense_width, 16384u);
    EXPECT_EQ(s.expert_width, 2048u);
    EXPECT_EQ(std::ranges::count(s.is_moe, true), 69);
    EXPECT_FALSE(s.is_moe[0]);
    EXPECT_EQ(s.experts, 384u);
    EXPECT_EQ(s.experts_per_token, 8u);
    EXPECT_TRUE(s.normalize_top_k);
    EXPECT_EQ(s.routed_scale, 1.0f);
    EXPECT_TRUE(s.quantization.fp8);
    EXPECT_FALSE(s.quantization.mxfp4_experts);
    EXPECT_EQ(s.quantization.kept_in_bf16.size(), 70u);
    EXPECT_TRUE(s.quantization.kept_in_bf16.contains("model.layers.69.self_attn.o_proj"));
    EXPECT_TRUE(parse_shape(test::pro_fp4_config(), kSource).quantization.mxfp4_experts);
}

TEST(Shape, Flash) {
    struct Known {
        const char* what;
        Json config;
        const char* model_type;
        float rope_theta;
        uint32_t context_max;
        float norm_epsilon;
        bool fused_qkv, mxfp4_experts;
    };
    for (const Known& known : std::vector<Known>{
             {"V2", test::flash_config(), "mimo_v2_flash", 5e6f, 262144, 1e-5f, false, false},
             {"V2.5", test::flash25_config(), "mimo_v2", 1e7f, 1048576, 1e-5f, true, false},
             {"V2.6", test::flash26_config(), "mimo_v2", 1e7f, 1048576, 1e-6f, true, true}}) {
        SCOPED_TRACE(known.what);
        const Shape s = parse_shape(known.config, kSource);
        EXPECT_EQ(s.model_type, known.model_type);
        EXPECT_EQ(s.hidden, 4096u);
        EXPECT_EQ(s.layers, 48u);
        EXPECT_THAT(full_layers(s), ElementsAre(0, 5, 11, 17, 23, 29, 35, 41, 47));
        EXPECT_EQ(s.full.kv_heads, 4u);
        EXPECT_EQ(s.sliding.kv_heads, 8u);
        EXPECT_EQ(s.full.rotary_dims, 64u);
        EXPECT_EQ(s.full.rope_theta, known.rope_theta);
        EXPECT_EQ(s.sliding.rope_theta, 1e4f);
        EXPECT_EQ(s.sliding.window, 128u);
        EXPECT_EQ(s.value_scale, 0.707f);
        EXPECT_EQ(s.context_max, known.context_max);
        EXPECT_EQ(s.norm_epsilon, known.norm_epsilon);
        EXPECT_EQ(s.experts, 256u);
        EXPECT_EQ(s.fused_qkv, known.fused_qkv);
        EXPECT_EQ(s.qkv_chunks(), 4u);
        EXPECT_TRUE(s.quantization.fp8);
        EXPECT_EQ(s.quantization.mxfp4_experts, known.mxfp4_experts);
        const auto rows = [](const AttentionShape& a) {
            return a.q_rows() + a.k_rows() + a.v_rows();
        };
        EXPECT_EQ(rows(s.full), 13568u);
        EXPECT_EQ(rows(s.sliding), 14848u);
    }
}

TEST(Shape, MayLeaveOut) {
    Json config = test::pro_fp8_config();
    for (const char* key :
         {"partial_rotary_factor", "swa_num_attention_heads", "swa_num_key_value_heads",
          "swa_head_dim", "swa_v_head_dim", "swa_rope_theta", "add_full_attention_sink_bias",
          "add_swa_attention_sink_bias", "attention_value_scale", "attention_projection_layout",
          "norm_topk_prob", "routed_scaling_factor", "quantization_config", "n_group",
          "n_shared_experts", "hidden_act", "tie_word_embeddings"}) {
        config.erase(key);
    }
    const Shape s = parse_shape(config, kSource);
    EXPECT_EQ(s.full.rotary_dims, 192u);
    EXPECT_EQ(s.sliding.heads, 128u);
    EXPECT_EQ(s.sliding.kv_heads, 8u);
    EXPECT_EQ(s.sliding.rope_theta, 1e7f);
    EXPECT_FALSE(s.sliding.sink);
    EXPECT_EQ(s.value_scale, 1.0f);
    EXPECT_FALSE(s.fused_qkv);
    EXPECT_TRUE(s.normalize_top_k);
    EXPECT_FALSE(s.quantization.fp8);
}

// ------------------------------------------------------------------------------------- refusals

struct Field {
    const char* key;
    bool required = true;  // else missing and null mean a default
    bool whole = true;
};

constexpr Field kFields[] = {{"hidden_size"},
                             {"num_hidden_layers"},
                             {"vocab_size"},
                             {"max_position_embeddings"},
                             {"num_attention_heads"},
                             {"num_key_value_heads"},
                             {"head_dim"},
                             {"v_head_dim"},
                             {"swa_num_attention_heads", false},
                             {"swa_num_key_value_heads", false},
                             {"swa_head_dim", false},
                             {"swa_v_head_dim", false},
                             {"sliding_window"},
                             {"intermediate_size"},
                             {"moe_intermediate_size"},
                             {"n_routed_experts"},
                             {"num_experts_per_tok"},
                             {"layernorm_epsilon", true, false},
                             {"rope_theta", true, false},
                             {"swa_rope_theta", false, false},
                             {"partial_rotary_factor", false, false},
                             {"attention_value_scale", false, false},
                             {"routed_scaling_factor", false, false}};

const std::vector<Json> kNeverANumber = {-1,   -0.5, 1e300, INT64_MIN,     UINT64_MAX,    "NaN",
                                         "12", "",   true,  Json::array(), Json::object()};

// Every wrong value under `at(config)[field.key]` is refused; the error names source and key.
template <typename At, typename Refused>
void expect_refused(const Field& field, Json config, At at, Refused refused_by) {
    SCOPED_TRACE(field.key);
    const auto named = AllOf(HasSubstr(kSource), HasSubstr(fmt::format("\"{}\"", field.key)));
    std::vector<Json> wrong = kNeverANumber;
    if (field.whole) wrong.insert(wrong.end(), {1.5, 2.0, 1e9, 0.999, uint64_t{1} << 32});
    if (field.required) wrong.push_back(nullptr);
    for (const Json& value : wrong) {
        at(config)[field.key] = value;
        EXPECT_THAT(refused_by(config), named) << value;
    }
    if (!field.required) return;
    at(config).erase(field.key);
    EXPECT_THAT(refused_by(config), named) << "missing";
}

TEST(Shape, RefusesWrongNumbersBySourceAndKey) {
    for (const Field& field : kFields) {
        expect_refused(
            field, test::pro_fp8_config(), [](Json& config) -> Json& { return config; }, refused);
    }
}

struct Wrong {
    const char* key;
    Json value;
    const char* words = "";
};

TEST(Shape, RefusesFeaturesItDoesNotHave) {
    for (const Wrong& wrong : std::vector<Wrong>{
             {"model_type", "llama", "only \"mimo_v2\" and \"mimo_v2_flash\""},
             {"model_type", 2, "must be a string"},
             {"model_type", nullptr, "must be a string"},
             {"tie_word_embeddings", true, "only false is supported"},
             {"attention_bias", true, "only false is supported"},
             {"hidden_act", "gelu", "only \"silu\" is supported"},
             {"n_shared_experts", 1, "only 0 is supported"},
             {"n_group", 8, "only 1 is supported"},
             {"topk_group", 4, "only 1 is supported"},
             {"topk_method", "greedy", "only \"noaux_tc\" is supported"},
             {"scoring_func", "softmax", "only \"sigmoid\" is supported"},
             {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4}}, "\"default\""},
             {"attention_projection_layout", "fused_kv", "only \"fused_qkv\" is supported"},
             {"add_swa_attention_sink_bias", 1, "must be true or false, found 1"},
             {"add_full_attention_sink_bias", "true", "must be true or false"},
             {"norm_topk_prob", 0, "must be true or false, found 0"},
             {"hybrid_layer_pattern", {0, 1}, "must list 70 layers, found 2"},
             {"hybrid_layer_pattern", "full", "must list 70 layers, found \"full\""},
             {"hybrid_layer_pattern", Json(70, 2), "from 0 to 1, found 2"},
             {"hybrid_layer_pattern", nullptr, "must list 70 layers, found null"},
             {"moe_layer_freq", 1, "must list 70 layers, found 1"},
             {"moe_layer_freq", Json(70, "1"), "from 0 to 1, found \"1\""},
             {"partial_rotary_factor", 0.005, "gives 0 rotary dims"},
             {"partial_rotary_factor", 0.34, "gives 65 rotary dims"},
             {"num_key_value_heads", 7, "128 attention heads are not a multiple of 7 kv heads"},
             {"num_key_value_heads", 16, "cannot be cut into 16 fused qkv chunks"},
             {"num_experts_per_tok", 385, "from 1 to 384, found 385"},
             {"quantization_config", "fp8", "expected a JSON object, found string"},
             {"quantization_config", {{"quant_method", "awq"}}, "quant_method \"awq\""},
             {"quantization_config", {{"fmt", "e4m3"}}, "\"quant_method\" is missing"}}) {
        Json config = test::pro_fp8_config();
        config[wrong.key] = wrong.value;
        EXPECT_THAT(refused(config), AllOf(HasSubstr(kSource), HasSubstr(wrong.words)))
            << wrong.key << " " << wrong.value;
    }
}

TEST(Shape, RefusesQuantizationItDoesNotHave) {
    for (const Wrong& wrong :
         std::vector<Wrong>{{"fmt", "e5m2", "only \"e4m3\" is supported"},
                            {"weight_block_size", {64, 128}, "only [128,128] is supported"},
                            {"weight_block_size", 128, "only [128,128] is supported"},
                            {"store_dtype", "nvfp4", "only \"mxfp4\" is supported"},
                            {"mxfp4_block_size", 16, "only 32 is supported"},
                            {"ignored_layers", "lm_head", "must be a list of names"},
                            {"ignored_layers", {"lm_head", 3}, "holds 3, expected names"}}) {
        Json config = test::pro_fp4_config();
        config["quantization_config"][wrong.key] = wrong.value;
        EXPECT_THAT(refused(config),
                    AllOf(HasSubstr(kSource), HasSubstr(wrong.key), HasSubstr(wrong.words)))
            << wrong.key << " " << wrong.value;
    }
    Json config = test::pro_fp4_config();
    config["moe_intermediate_size"] = 2040;
    EXPECT_THAT(refused(config), AllOf(HasSubstr("blocks of 32"), HasSubstr("2040")));
}

TEST(Shape, RefusesWhatIsNoObject) {
    for (const Json& config : std::vector<Json>{nullptr, 1, "config", Json::array()}) {
        EXPECT_THAT(refused(config), HasSubstr("folder/config.json: expected a JSON object"));
    }
}

// An error stays one short line whatever stands under the key.
TEST(Shape, ErrorsShowForeignTextShortAndPrintable) {
    const std::string foreign = fmt::format("\n\xff\x01{}", std::string(10000, 'x'));
    for (const char* key : {"/hidden_size", "/hidden_act", "/model_type", "/moe_layer_freq",
                            "/quantization_config/quant_method"}) {
        Json config = test::pro_fp8_config();
        config[Json::json_pointer(key)] = foreign;
        const std::string message = refused(config);
        EXPECT_LT(message.size(), 250u) << key;
        EXPECT_TRUE(std::ranges::all_of(message, [](char c) { return c >= ' ' && c <= '~'; }))
            << key;
    }
}

// -------------------------------------------------------------------------------------- drafter

const Shape& pro() {
    static const Shape shape = parse_shape(test::pro_fp4_config(), "target");
    return shape;
}

std::string refused_drafter(const Json& config) {
    return refusal([&] { parse_drafter_shape(config, pro(), kSource); });
}

TEST(DrafterShape, Pro) {
    const DrafterShape d = parse_drafter_shape(test::pro_drafter_config(), pro(), kSource);
    EXPECT_EQ(d.hidden, 6144u);
    EXPECT_EQ(d.layers, 5u);
    EXPECT_EQ(d.width, 16384u);
    EXPECT_EQ(d.attention.heads, 128u);
    EXPECT_EQ(d.attention.kv_heads, 8u);
    EXPECT_EQ(d.attention.head_dim, 128u);
    EXPECT_EQ(d.attention.v_head_dim, 128u);
    EXPECT_EQ(d.attention.rotary_dims, 64u);
    EXPECT_EQ(d.attention.rope_theta, 1e4f);
    EXPECT_EQ(d.attention.window, 1024u);
    EXPECT_TRUE(d.attention.sink);
    EXPECT_EQ(d.value_scale, 0.612f);
    EXPECT_EQ(d.norm_epsilon, 1e-5f);
    EXPECT_EQ(d.block, 8u);
    EXPECT_EQ(d.mask_token, 151669u);
    EXPECT_THAT(d.taps, ElementsAre(0, 15, 31, 47, 69));
}

// The published one already differs from the target's 152576.
TEST(DrafterShape, ItsVocabularyIsNotRead) {
    Json config = test::pro_drafter_config();
    ASSERT_NE(config["vocab_size"], pro().vocab);
    for (const Json& vocab : std::vector<Json>{1, "many", nullptr}) {
        config["vocab_size"] = vocab;
        EXPECT_EQ(refused_drafter(config), "accepted") << vocab;
    }
    config.erase("vocab_size");
    EXPECT_EQ(refused_drafter(config), "accepted");
}

TEST(DrafterShape, RefusesWrongNumbersBySourceAndKey) {
    for (const Field& field : std::vector<Field>{{"num_hidden_layers"},
                                                 {"intermediate_size"},
                                                 {"num_attention_heads"},
                                                 {"num_key_value_heads"},
                                                 {"head_dim"},
                                                 {"v_head_dim", false},
                                                 {"hidden_size"},
                                                 {"rms_norm_eps", true, false},
                                                 {"rope_theta", true, false},
                                                 {"partial_rotary_factor", false, false}}) {
        expect_refused(
            field, test::pro_drafter_config(), [](Json& config) -> Json& { return config; },
            refused_drafter);
    }
    for (const Field& field : std::vector<Field>{
             {"block_size"}, {"swa_window_size"}, {"attention_value_scale", false, false}}) {
        expect_refused(
            field, test::pro_drafter_config(),
            [](Json& config) -> Json& { return config["dflash_config"]; }, refused_drafter);
    }
}

TEST(DrafterShape, RefusesWhatDoesNotFit) {
    for (const Wrong& wrong : std::vector<Wrong>{
             {"/hidden_size", 4096, "the drafter's hidden_size is 4096, the target's 6144"},
             {"/num_key_value_heads", 7, "128 heads are not a multiple of 7"},
             {"/attention_bias", true, "only false is supported"},
             {"/is_causal", true, "only false is supported"},
             {"/dflash_config", nullptr, "expected a JSON object, found null"},
             {"/dflash_config/block_size", 1, "from 2 to 64, found 1"},
             {"/dflash_config/mask_token_id", -1, "\"mask_token_id\" must be a whole number"},
             {"/dflash_config/mask_token_id", 1e10, "\"mask_token_id\" must be a whole number"},
             {"/dflash_config/use_swa", 1, "\"use_swa\" must be true or false"},
             {"/dflash_config/attention_sink_bias", "yes", "must be true or false"},
             {"/dflash_config/target_layer_ids", Json::array(), "must list layers"},
             {"/dflash_config/target_layer_ids", 5, "must list layers"},
             {"/dflash_config/target_layer_ids", {0, 70}, "from 0 to 69, found 70"},
             {"/dflash_config/target_layer_ids", {0, -1}, "from 0 to 69, found -1"},
             {"/dflash_config/target_layer_ids", {0, 15, 15}, "must ascend"},
             {"/dflash_config/target_layer_ids", {15, 0}, "must ascend"}}) {
        Json config = test::pro_drafter_config();
        config[Json::json_pointer(wrong.key)] = wrong.value;
        EXPECT_THAT(refused_drafter(config), AllOf(HasSubstr(kSource), HasSubstr(wrong.words)))
            << wrong.key << " " << wrong.value;
    }
    Json config = test::pro_drafter_config();
    config.erase("dflash_config");
    EXPECT_THAT(refused_drafter(config), HasSubstr("\"dflash_config\" is missing"));
}

}  // namespace
}  // namespace tessera
