// The list of required tensors against the totals that the releases publish.
#include "weights/inventory.h"

#include <map>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/published.h"

namespace tessera {
namespace {

struct Totals {
    uint64_t tensors = 0, elements = 0, bytes = 0;

    void add(const std::vector<RequiredTensor>& inventory) {
        tensors += inventory.size();
        for (const RequiredTensor& required : inventory) {
            elements += required.elements();
            bytes += required.bytes();
        }
    }
};

Totals release(const Shape& shape) {
    Totals totals;
    totals.add(target_inventory(shape));
    totals.add(mtp_inventory(shape));
    return totals;
}

std::map<std::string, RequiredTensor> by_name(const std::vector<RequiredTensor>& inventory) {
    std::map<std::string, RequiredTensor> tensors;
    for (const RequiredTensor& required : inventory) {
        EXPECT_TRUE(tensors.emplace(required.name, required).second) << required.name << " twice";
    }
    return tensors;
}

TEST(Inventory, ProInFp8HasTheIndexsTotals) {
    const Totals totals = release(parse_shape(test::pro_fp8_config(), "pro"));
    EXPECT_EQ(totals.tensors, 159'581u);
    EXPECT_EQ(totals.elements, 1'023'244'718'976u);
}

TEST(Inventory, ProInMxfp4HasThePagesTotals) {
    const Shape pro = parse_shape(test::pro_fp4_config(), "pro");
    const Totals totals = release(pro);
    EXPECT_EQ(totals.elements, 554'344'371'072u);  // the page: 554.34e9

    Totals drafter;
    drafter.add(drafter_inventory(parse_drafter_shape(test::pro_drafter_config(), pro, "drafter")));
    EXPECT_EQ(drafter.tensors, 63u);
    EXPECT_EQ(drafter.elements, 2'768'316'288u);
    EXPECT_EQ(drafter.bytes, 2 * drafter.elements);             // all of it bf16
    EXPECT_EQ(totals.bytes + drafter.bytes, 569'822'682'624u);  // the page: 569.8 GB
}

struct Known {
    const char* name;
    Dtype dtype;
    std::vector<uint64_t> shape;
};

void expect_tensors(const Json& config, const std::vector<Known>& table) {
    const auto tensors = by_name(target_inventory(parse_shape(config, "config")));
    for (const Known& known : table) {
        ASSERT_TRUE(tensors.contains(known.name)) << known.name;
        EXPECT_EQ(tensors.at(known.name).dtypes.front(), known.dtype) << known.name;
        EXPECT_EQ(tensors.at(known.name).shape, known.shape) << known.name;
    }
}

TEST(Inventory, ProsTensorsAreAsPublished) {
    const std::vector<Known> both = {
        {"model.embed_tokens.weight", Dtype::bf16, {152576, 6144}},
        {"lm_head.weight", Dtype::bf16, {152576, 6144}},
        {"model.norm.weight", Dtype::bf16, {6144}},
        {"model.layers.69.post_attention_layernorm.weight", Dtype::bf16, {6144}},
        {"model.layers.0.self_attn.qkv_proj.weight", Dtype::e4m3, {27136, 6144}},
        {"model.layers.0.self_attn.qkv_proj.weight_scale_inv", Dtype::f32, {216, 48}},
        {"model.layers.1.self_attn.o_proj.weight", Dtype::bf16, {6144, 16384}},
        {"model.layers.1.self_attn.attention_sink_bias", Dtype::bf16, {128}},
        {"model.layers.0.mlp.up_proj.weight", Dtype::e4m3, {16384, 6144}},
        {"model.layers.0.mlp.up_proj.weight_scale_inv", Dtype::f32, {128, 48}},
        {"model.layers.0.mlp.down_proj.weight_scale_inv", Dtype::f32, {48, 128}},
        {"model.layers.1.mlp.gate.weight", Dtype::f32, {384, 6144}},
        {"model.layers.1.mlp.gate.e_score_correction_bias", Dtype::f32, {384}}};
    expect_tensors(test::pro_fp8_config(), both);
    expect_tensors(test::pro_fp4_config(), both);
    expect_tensors(
        test::pro_fp8_config(),
        {{"model.layers.69.mlp.experts.383.up_proj.weight", Dtype::e4m3, {2048, 6144}},
         {"model.layers.69.mlp.experts.383.up_proj.weight_scale_inv", Dtype::f32, {16, 48}},
         {"model.layers.69.mlp.experts.383.down_proj.weight", Dtype::e4m3, {6144, 2048}},
         {"model.layers.69.mlp.experts.383.down_proj.weight_scale_inv", Dtype::f32, {48, 16}}});
    expect_tensors(
        test::pro_fp4_config(),
        {{"model.layers.69.mlp.experts.383.up_proj.weight", Dtype::u8, {2048, 3072}},
         {"model.layers.69.mlp.experts.383.up_proj.weight_scale", Dtype::u8, {2048, 192}},
         {"model.layers.69.mlp.experts.383.down_proj.weight", Dtype::u8, {6144, 1024}},
         {"model.layers.69.mlp.experts.383.down_proj.weight_scale", Dtype::u8, {6144, 64}}});
}

TEST(Inventory, FlashsTensorsAreAsPublished) {
    expect_tensors(test::flash_config(),
                   {{"model.layers.0.self_attn.q_proj.weight", Dtype::e4m3, {12288, 4096}},
                    {"model.layers.0.self_attn.k_proj.weight", Dtype::e4m3, {768, 4096}},
                    {"model.layers.0.self_attn.k_proj.weight_scale_inv", Dtype::f32, {6, 32}},
                    {"model.layers.0.self_attn.v_proj.weight", Dtype::e4m3, {512, 4096}},
                    {"model.layers.1.self_attn.k_proj.weight", Dtype::e4m3, {1536, 4096}},
                    {"model.layers.1.self_attn.v_proj.weight", Dtype::e4m3, {1024, 4096}}});
    expect_tensors(test::flash25_config(),
                   {{"model.layers.0.self_attn.qkv_proj.weight", Dtype::e4m3, {13568, 4096}},
                    {"model.layers.0.self_attn.qkv_proj.weight_scale_inv", Dtype::f32, {108, 32}},
                    {"model.layers.1.self_attn.qkv_proj.weight", Dtype::e4m3, {14848, 4096}},
                    {"model.layers.1.self_attn.qkv_proj.weight_scale_inv", Dtype::f32, {116, 32}}});
}

TEST(Inventory, SinksAreOfSlidingLayersOnly) {
    const Shape pro = parse_shape(test::pro_fp8_config(), "pro");
    uint32_t sinks = 0;
    for (const RequiredTensor& required : target_inventory(pro)) {
        sinks += required.name.ends_with("attention_sink_bias");
    }
    EXPECT_EQ(sinks, 60u);
}

TEST(Inventory, PartsHaveNames) {
    std::set<std::string_view> names;
    for (const Part part : kParts) names.insert(part_name(part));
    EXPECT_EQ(names.size(), std::size(kParts));
    EXPECT_FALSE(names.contains(""));
}

TEST(Inventory, SkipsMtpVisionAndAudioOnly) {
    for (const char* name : {"model.mtp.layers.0.eh_proj.weight", "visual.patch_embed.weight",
                             "model.visual.blocks.0.norm.weight", "audio_encoder.conv.weight",
                             "model.audio_tower.weight", "speech_embeddings.0.weight"}) {
        EXPECT_TRUE(is_skipped(name)) << name;
    }
    for (const char* name : {"", "model.layers.0.mlp.visual.weight", "lm_head.weight", "model.mtp",
                             "mtp.layers.0.weight", "model.norm.weight"}) {
        EXPECT_FALSE(is_skipped(name)) << name;
    }
}

}  // namespace
}  // namespace tessera
