// The drafter's binder on a seeded toy: what does not fit its config is refused by name, with
// expected and found; what fits is found in the field of its name.
#include "weights/bind_drafter.h"

#include <functional>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/refusal.h"

#include "support/seeded.h"
#include "support/toys.h"

namespace tessera {
namespace {

using test::refusal;
using test::SeededCheckpoint;
using testing::HasSubstr;

constexpr uint64_t kSeed = 11;
constexpr const char* kV = "layers.1.self_attn.v_proj.weight";  // [48, 160]

struct Harm {
    const char* what;
    std::function<void(SeededCheckpoint&, MaskEmbedding&)> harm;
    std::vector<std::string> words;  // of the error; none: bound all the same
};

TEST(BindDrafter, RefusesByNameWithExpectedAndFound) {
    const DrafterShape shape = test::toy_drafter_shape();
    const auto remove = [](const char* name) {
        return [=](SeededCheckpoint& made, MaskEmbedding&) { made.checkpoint.tensors.erase(name); };
    };
    const auto put = [](const char* name, Dtype dtype, std::vector<uint64_t> extents) {
        return [=](SeededCheckpoint& made, MaskEmbedding&) { made.add(name, dtype, extents); };
    };
    const auto resize = [](size_t size) {
        return [=](SeededCheckpoint&, MaskEmbedding& mask) { mask.embedding.resize(size); };
    };
    const auto token = [](int64_t id) {
        return [=](SeededCheckpoint&, MaskEmbedding& mask) { mask.mask_token_id = id; };
    };
    for (const Harm& harm : std::vector<Harm>{
             {"nothing", [](SeededCheckpoint&, MaskEmbedding&) {}, {}},
             {"missing", remove("fc.weight"), {"fc.weight is missing", "expected BF16 [160, 480]"}},
             {"missing head norm",
              remove("layers.0.self_attn.q_norm.weight"),
              {"layers.0.self_attn.q_norm.weight is missing", "[32]"}},
             {"missing sink",
              remove("layers.1.self_attn.attention_sink_bias"),
              {"layers.1.self_attn.attention_sink_bias is missing", "[8]"}},
             {"other shape",
              put(kV, Dtype::bf16, {64, 160}),
              {kV, "expected shape [48, 160], found [64, 160]"}},
             {"taps of another count",
              put("fc.weight", Dtype::bf16, {160, 800}),
              {"fc.weight", "expected shape [160, 480], found [160, 800]"}},
             {"quantised",
              put(kV, Dtype::e4m3, {48, 160}),
              {kV, "expected dtype BF16 or F32, found F8_E4M3"}},
             {"norm in f32", put("norm.weight", Dtype::f32, {160}), {}},
             {"one more layer",
              put("layers.2.input_layernorm.weight", Dtype::bf16, {160}),
              {"layers.2.input_layernorm.weight is unexpected", "BF16 [160]"}},
             {"an embedding of its own",
              put("embed_tokens.weight", Dtype::bf16, {203, 160}),
              {"embed_tokens.weight is unexpected", "BF16 [203, 160]"}},
             {"mask of another token",
              token(151669),
              {"mask_embedding.pt", "mask_token_id is 151669, expected 199"}},
             {"mask of no token", token(-1), {"mask_token_id is -1, expected 199"}},
             {"mask of a token past 32 bits",
              token((int64_t{1} << 32) + 199),
              {"mask_token_id is 4294967495, expected 199"}},
             {"mask too short",
              resize(159),
              {"mask_embedding.pt", "159 values, expected hidden_size 160"}},
             {"mask too long", resize(161), {"161 values, expected hidden_size 160"}},
             {"no mask", resize(0), {"0 values, expected hidden_size 160"}},
             {"incomplete",
              [](SeededCheckpoint&made, MaskEmbedding&) {
                  made.checkpoint.folder = "dflash";
                  made.checkpoint.missing = {"model.safetensors is not there"};
              },
              {"dflash: incomplete: model.safetensors is not there"}}}) {
        SCOPED_TRACE(harm.what);
        SeededCheckpoint made = test::seeded_checkpoint(shape, kSeed);
        MaskEmbedding mask = test::seeded_mask(shape, kSeed);
        harm.harm(made, mask);
        const std::string said = refusal([&] { bind_drafter(made.checkpoint, shape, mask); });
        if (harm.words.empty()) {
            EXPECT_EQ(said, "accepted");
        }
        for (const std::string& words : harm.words) EXPECT_THAT(said, HasSubstr(words));
    }
}

TEST(BindDrafter, NamesTheFolderOfAWrongMask) {
    const DrafterShape shape = test::toy_drafter_shape();
    SeededCheckpoint made = test::seeded_checkpoint(shape, kSeed);
    made.checkpoint.folder = "model/dflash";
    const MaskEmbedding mask{7, {}};
    EXPECT_THAT(refusal([&] { bind_drafter(made.checkpoint, shape, mask); }),
                HasSubstr("model/dflash/mask_embedding.pt"));
}

void expect_matrix(const Matrix& matrix, const std::string& name, uint32_t rows, uint32_t columns) {
    SCOPED_TRACE(name);
    ASSERT_EQ(matrix.rows, rows);
    ASSERT_EQ(matrix.columns, columns);
    std::vector<float> row(columns);
    for (uint32_t i = 0; i < rows; ++i) {
        dequantize_row(matrix, i, row);
        for (uint32_t j = 0; j < columns; ++j) {
            ASSERT_EQ(row[j], test::seeded_value(name, uint64_t{i} * columns + j, columns, kSeed));
        }
    }
}

void expect_vector(const std::vector<float>& vector, const std::string& name, size_t size) {
    SCOPED_TRACE(name);
    ASSERT_EQ(vector.size(), size);
    for (size_t i = 0; i < size; ++i)
        ASSERT_EQ(vector[i], test::seeded_value(name, i, size, kSeed));
}

TEST(BindDrafter, EveryFieldHoldsTheTensorOfItsName) {
    const DrafterShape shape = test::toy_drafter_shape();
    const SeededCheckpoint made = test::seeded_checkpoint(shape, kSeed);
    const DrafterWeights weights =
        bind_drafter(made.checkpoint, shape, test::seeded_mask(shape, kSeed));
    EXPECT_EQ(weights.mask_embedding, test::seeded_rows("mask_embedding", 160, kSeed));
    expect_matrix(weights.fc, "fc.weight", 160, 480);
    expect_vector(weights.hidden_norm, "hidden_norm.weight", 160);
    expect_vector(weights.norm, "norm.weight", 160);
    ASSERT_EQ(weights.layers.size(), 2u);
    for (const uint32_t i : {0u, 1u}) {
        const DrafterLayerWeights& layer = weights.layers[i];
        const std::string at = "layers." + std::to_string(i), attention = at + ".self_attn.";
        expect_vector(layer.input_norm, at + ".input_layernorm.weight", 160);
        expect_vector(layer.post_norm, at + ".post_attention_layernorm.weight", 160);
        expect_matrix(layer.q, attention + "q_proj.weight", 8 * 32, 160);
        expect_matrix(layer.k, attention + "k_proj.weight", 2 * 32, 160);
        expect_matrix(layer.v, attention + "v_proj.weight", 2 * 24, 160);
        expect_matrix(layer.o, attention + "o_proj.weight", 160, 8 * 24);
        expect_vector(layer.q_norm, attention + "q_norm.weight", 32);
        expect_vector(layer.k_norm, attention + "k_norm.weight", 32);
        expect_vector(layer.sink, attention + "attention_sink_bias", 8);
        expect_matrix(layer.dense.gate, at + ".mlp.gate_proj.weight", 256, 160);
        expect_matrix(layer.dense.up, at + ".mlp.up_proj.weight", 256, 160);
        expect_matrix(layer.dense.down, at + ".mlp.down_proj.weight", 160, 256);
    }
}

TEST(BindDrafter, CountsTheBytesItBinds) {
    const DrafterShape shape = test::toy_drafter_shape();
    const SeededCheckpoint made = test::seeded_checkpoint(shape, kSeed);
    uint64_t bytes = 0;
    for (const auto& storage : made.storage) bytes += storage.size();
    EXPECT_EQ(bind_drafter(made.checkpoint, shape, test::seeded_mask(shape, kSeed)).bytes, bytes);
}

TEST(BindDrafter, WithoutSinksThereAreNone) {
    const DrafterShape shape =
        test::toy_drafter_shape({{"dflash_config", {{"attention_sink_bias", false}}}});
    SeededCheckpoint made = test::seeded_checkpoint(shape, kSeed);
    const MaskEmbedding mask = test::seeded_mask(shape, kSeed);
    for (const DrafterLayerWeights& layer : bind_drafter(made.checkpoint, shape, mask).layers)
        EXPECT_TRUE(layer.sink.empty());
    made.add("layers.0.self_attn.attention_sink_bias", Dtype::bf16, {8});
    EXPECT_THAT(refusal([&] { bind_drafter(made.checkpoint, shape, mask); }),
                HasSubstr("layers.0.self_attn.attention_sink_bias is unexpected"));
}

}  // namespace
}  // namespace tessera
