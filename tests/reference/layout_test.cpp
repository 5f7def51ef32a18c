// The layout of a checkpoint is no part of the model: the same weights as one fused qkv_proj or as
// separate q, k and v give the same logits, bit for bit.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "reference/reference.h"

#include "support/seeded.h"

namespace tessera {
namespace {

// One full and two sliding layers; kv heads differ between the kinds, as in V2.5-Flash.
Json config_of_toy() {
    return {{"model_type", "mimo_v2"},
            {"hidden_size", 40},
            {"num_hidden_layers", 3},
            {"num_attention_heads", 8},
            {"num_key_value_heads", 2},
            {"swa_num_key_value_heads", 4},
            {"head_dim", 12},
            {"v_head_dim", 10},
            {"partial_rotary_factor", 0.334},
            {"rope_theta", 1e6},
            {"swa_rope_theta", 1e4},
            {"sliding_window", 4},
            {"hybrid_layer_pattern", {0, 1, 1}},
            {"attention_value_scale", 0.707},
            {"add_swa_attention_sink_bias", true},
            {"intermediate_size", 48},
            {"moe_intermediate_size", 24},
            {"moe_layer_freq", {0, 1, 1}},
            {"n_routed_experts", 4},
            {"num_experts_per_tok", 2},
            {"layernorm_epsilon", 1e-5},
            {"max_position_embeddings", 64},
            {"vocab_size", 30}};
}

// q, k and v of every layer become chunks [Q | K | V], one for each kv head of the full kind.
void fuse(test::SeededCheckpoint& made, const Shape& shape) {
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
        const std::string at = "model.layers." + std::to_string(layer) + ".self_attn.";
        const AttentionShape& a = shape.attention(layer);
        std::vector<std::byte> rows;
        for (uint32_t chunk = 0; chunk < shape.full.kv_heads; ++chunk) {
            for (const char* name : {"q_proj.weight", "k_proj.weight", "v_proj.weight"}) {
                const auto part = made.checkpoint.tensors.at(at + name).bytes;
                const size_t run = part.size() / shape.full.kv_heads;
                const auto piece = part.subspan(chunk * run, run);
                rows.insert(rows.end(), piece.begin(), piece.end());
            }
        }
        for (const char* name : {"q_proj.weight", "k_proj.weight", "v_proj.weight"}) {
            made.checkpoint.tensors.erase(at + name);
        }
        std::vector<std::byte>& fused =
            made.add(at + "qkv_proj.weight", Dtype::bf16,
                     {a.q_rows() + a.k_rows() + a.v_rows(), shape.hidden});
        ASSERT_EQ(fused.size(), rows.size());
        std::ranges::copy(rows, fused.begin());
    }
}

std::vector<float> logits(const test::SeededCheckpoint& made, const Shape& shape) {
    const Weights weights = bind(made.checkpoint, shape);
    const Reference reference(weights, Rounding::bf16);
    Reference::Cache cache;
    const std::vector<uint32_t> tokens = {3, 14, 15, 9, 26, 5, 3, 5, 8};
    return reference.logits(reference.forward(cache, tokens));
}

TEST(Layout, FusedOrSeparateTheLogitsAreTheSame) {
    Json config = config_of_toy();
    const Shape separate = parse_shape(config, "separate");
    config["attention_projection_layout"] = "fused_qkv";
    const Shape fused = parse_shape(config, "fused");

    test::SeededCheckpoint made = test::seeded_checkpoint(separate, 11);
    const std::vector<float> expected = logits(made, separate);
    ASSERT_TRUE(std::isfinite(expected.front()));
    fuse(made, fused);
    EXPECT_EQ(logits(made, fused), expected);
}

}  // namespace
}  // namespace tessera
