// The binder on seeded toys: whatever does not fit the config is refused by name, with expected and
// found; what fits is read as the layout's description has it, element by element.
#include "weights/bind.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/refusal.h"

#include "support/published.h"
#include "support/seeded.h"

namespace tessera {
namespace {

using test::refusal;
using test::SeededCheckpoint;
using testing::AllOf;
using testing::HasSubstr;

// A published configuration shrunk: two layers, full then sliding, the first dense. Sizes are such
// that no block of 128 and no chunk of rows fits another by accident.
Json toy(Json config) {
    config.update({{"hidden_size", 160},
                   {"num_hidden_layers", 2},
                   {"num_attention_heads", 8},
                   {"swa_num_attention_heads", 8},
                   {"num_key_value_heads", 2},
                   {"swa_num_key_value_heads", 4},
                   {"head_dim", 48},
                   {"swa_head_dim", 48},
                   {"v_head_dim", 32},
                   {"swa_v_head_dim", 32},
                   {"intermediate_size", 288},
                   {"moe_intermediate_size", 96},
                   {"n_routed_experts", 3},
                   {"num_experts_per_tok", 2},
                   {"vocab_size", 50},
                   {"hybrid_layer_pattern", {0, 1}},
                   {"moe_layer_freq", {0, 1}},
                   {"max_position_embeddings", 64}});
    return config;
}

Json toy_separate_fp8() {
    return test::with_o_proj_ignored(toy(test::published(kFlashConfig)));
}

Json toy_fused_fp8() {
    Json config = toy_separate_fp8();
    config["attention_projection_layout"] = "fused_qkv";
    return config;
}

Json toy_fused_mxfp4() {
    return test::with_mxfp4_experts(toy_fused_fp8());
}

Shape shape_of(const Json& config) {
    return parse_shape(config, "toy");
}

// ------------------------------------------------------------------------------- what is refused

constexpr const char* kQkv = "model.layers.0.self_attn.qkv_proj.weight";
constexpr const char* kDown = "model.layers.1.mlp.experts.2.down_proj.weight";

struct Harm {
    const char* what;
    std::function<void(SeededCheckpoint&)> harm;
    std::vector<std::string> words;  // of the error; none: bound all the same
};

TEST(Bind, RefusesByNameWithExpectedAndFound) {
    const Shape shape = shape_of(toy_fused_mxfp4());
    const auto remove = [](const char* name) {
        return [=](SeededCheckpoint& made) { made.checkpoint.tensors.erase(name); };
    };
    const auto put = [](const char* name, Dtype dtype, std::vector<uint64_t> extents) {
        return [=](SeededCheckpoint& made) { made.add(name, dtype, extents); };
    };
    for (const Harm& harm : std::vector<Harm>{
             {"nothing", [](SeededCheckpoint&) {}, {}},
             {"missing",
              remove("model.norm.weight"),
              {"model.norm.weight is missing", "expected BF16 [160]"}},
             {"missing scales",
              remove("model.layers.0.self_attn.qkv_proj.weight_scale_inv"),
              {"qkv_proj.weight_scale_inv is missing", "expected F32 [6, 2]"}},
             {"missing sink",
              remove("model.layers.1.self_attn.attention_sink_bias"),
              {"layers.1.self_attn.attention_sink_bias is missing", "[8]"}},
             {"missing expert", remove(kDown), {kDown, "is missing", "expected U8 [160, 48]"}},
             {"unexpected",
              put("model.layers.2.input_layernorm.weight", Dtype::bf16, {160}),
              {"model.layers.2.input_layernorm.weight is unexpected", "BF16 [160]"}},
             {"shared expert",
              put("model.layers.1.mlp.shared_experts.up_proj.weight", Dtype::e4m3, {96, 160}),
              {"shared_experts.up_proj.weight is unexpected", "F8_E4M3 [96, 160]"}},
             {"sink of a full layer",
              put("model.layers.0.self_attn.attention_sink_bias", Dtype::bf16, {8}),
              {"layers.0.self_attn.attention_sink_bias is unexpected"}},
             {"other dtype",
              put(kQkv, Dtype::bf16, {544, 160}),
              {kQkv, "expected dtype F8_E4M3, found BF16"}},
             {"norm in f16",
              put("model.norm.weight", Dtype::f16, {160}),
              {"model.norm.weight", "expected dtype BF16 or F32, found F16"}},
             {"norm in f32", put("model.norm.weight", Dtype::f32, {160}), {}},
             {"fp8 expert among mxfp4",
              put(kDown, Dtype::e4m3, {160, 96}),
              {kDown, "expected dtype U8, found F8_E4M3"}},
             {"other shape",
              put(kQkv, Dtype::e4m3, {160, 544}),
              {kQkv, "expected shape [544, 160], found [160, 544]"}},
             {"flat",
              put(kQkv, Dtype::e4m3, {544 * 160}),
              {kQkv, "expected shape [544, 160], found [87040]"}},
             {"scalar",
              put("model.norm.weight", Dtype::bf16, {}),
              {"model.norm.weight", "expected shape [160], found []"}},
             {"scales that do not restart",
              put("model.layers.0.self_attn.qkv_proj.weight_scale_inv", Dtype::f32, {5, 2}),
              {"expected shape [6, 2], found [5, 2]"}},
             {"padded scales elsewhere",
              put("model.layers.0.self_attn.qkv_proj.weight_scale_inv", Dtype::f32, {8, 2}),
              {"expected shape [6, 2], found [8, 2]"}},
             {"mtp, vision, audio",
              [&](SeededCheckpoint& made) {
                  made.add("model.mtp.layers.0.eh_proj.weight", Dtype::f16, {3});
                  made.add("visual.merger.weight", Dtype::i64, {1, 2, 3});
                  made.add("audio_encoder.conv.weight", Dtype::u8, {7});
              },
              {}},
             {"incomplete",
              [](SeededCheckpoint& made) {
                  made.checkpoint.folder = "toy";
                  made.checkpoint.missing = {"a.safetensors is not there", "b", "c"};
              },
              {"toy: incomplete: a.safetensors is not there and 2 more"}}}) {
        SCOPED_TRACE(harm.what);
        SeededCheckpoint made = test::seeded_checkpoint(shape, 1);
        harm.harm(made);
        const std::string said = refusal([&] { bind(made.checkpoint, shape); });
        if (harm.words.empty()) {
            EXPECT_EQ(said, "accepted");
        }
        for (const std::string& words : harm.words) EXPECT_THAT(said, HasSubstr(words));
    }
}

TEST(Bind, CountsTheBytesItBinds) {
    const Shape shape = shape_of(toy_fused_mxfp4());
    SeededCheckpoint made = test::seeded_checkpoint(shape, 1);
    uint64_t bytes = 0;
    for (const auto& storage : made.storage) bytes += storage.size();
    made.add("model.mtp.layers.0.eh_proj.weight", Dtype::bf16, {1000});
    EXPECT_EQ(bind(made.checkpoint, shape).bytes, bytes);
}

struct BadScale {
    const char* tensor;
    uint64_t index;
    float scale;
    const char* words;
};

TEST(ReadThrough, RefusesScalesThatNoReleaseHas) {
    const Shape shape = shape_of(toy_fused_mxfp4());
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const char* qkv = "model.layers.1.self_attn.qkv_proj.weight_scale_inv";  // [6, 2]
    const char* down = "model.layers.0.mlp.down_proj.weight_scale_inv";      // [2, 3]
    for (const BadScale& bad :
         std::vector<BadScale>{{qkv, 0, kNan, "row 0, column 0 is nan"},
                               {qkv, 5, kInfinity, "row 2, column 1 is inf"},
                               {down, 4, -kInfinity, "row 1, column 1 is -inf"},
                               {down, 5, -0.5f, "row 1, column 2 is -0.5"},
                               {down, 5, 0.0f, ""},
                               {down, 5, -0.0f, ""},
                               {down, 5, std::numeric_limits<float>::max(), ""}}) {
        SeededCheckpoint made = test::seeded_checkpoint(shape, 1);
        const Tensor& tensor = made.checkpoint.tensors.at(bad.tensor);
        std::memcpy(const_cast<std::byte*>(tensor.bytes.data()) + 4 * bad.index, &bad.scale, 4);
        const std::string said = refusal([&] { read_through(made.checkpoint, shape, 2); });
        if (*bad.words == 0) {
            EXPECT_EQ(said, "accepted") << bad.scale;
        } else {
            EXPECT_THAT(said, AllOf(HasSubstr(bad.tensor), HasSubstr(bad.words)));
        }
    }
}

TEST(ReadThrough, RefusesE8m0NaN) {
    const Shape shape = shape_of(toy_fused_mxfp4());
    const char* name = "model.layers.1.mlp.experts.2.down_proj.weight_scale";  // [160, 3]
    SeededCheckpoint made = test::seeded_checkpoint(shape, 1);
    const Tensor& tensor = made.checkpoint.tensors.at(name);
    const_cast<std::byte&>(tensor.bytes[3 * 159 + 1]) = std::byte{254};
    EXPECT_EQ(refusal([&] { read_through(made.checkpoint, shape, 2); }), "accepted");
    const_cast<std::byte&>(tensor.bytes[3 * 159 + 1]) = std::byte{255};
    EXPECT_THAT(refusal([&] { read_through(made.checkpoint, shape, 2); }),
                AllOf(HasSubstr(name), HasSubstr("row 159, column 1 is NaN (255)")));
}

TEST(ReadThrough, ReportsProgressUpToTheTotal) {
    const Shape shape = shape_of(toy_fused_mxfp4());
    const SeededCheckpoint made = test::seeded_checkpoint(shape, 1);
    const uint64_t bytes = bind(made.checkpoint, shape).bytes;
    for (const uint32_t threads : {1u, 3u}) {
        uint64_t last = 0;
        read_through(made.checkpoint, shape, threads, [&](uint64_t done, uint64_t total) {
            EXPECT_LE(done, total);
            EXPECT_EQ(total, bytes);
            last = done;
        });
        EXPECT_EQ(last, bytes);
    }
}

// ------------------------------------------------------------- k_proj's padded scales, V2-Flash

TEST(Bind, AcceptsKeyScalesPaddedToEightRows) {
    const Shape shape = shape_of(toy_separate_fp8());
    const char* name = "model.layers.0.self_attn.k_proj.weight_scale_inv";  // [1, 2]
    SeededCheckpoint made = test::seeded_checkpoint(shape, 1);
    const Tensor plain = made.checkpoint.tensors.at(name);
    const Weights before = bind(made.checkpoint, shape);

    std::vector<std::byte>& padded = made.add(name, Dtype::f32, {8, 2});
    std::ranges::fill(padded, std::byte{255});  // NaN: nobody may read it
    std::ranges::copy(plain.bytes, padded.begin());
    const Weights after = bind(made.checkpoint, shape);
    EXPECT_EQ(refusal([&] { read_through(made.checkpoint, shape, 1); }), "accepted");
    std::vector<float> a(shape.hidden), b(shape.hidden);
    for (uint32_t row = 0; row < shape.full.k_rows(); ++row) {
        dequantize_row(before.layers[0].k, row, a);
        dequantize_row(after.layers[0].k, row, b);
        ASSERT_EQ(a, b) << row;
    }

    for (const uint64_t rows : {uint64_t{0}, uint64_t{2}, uint64_t{7}, uint64_t{9}}) {
        made.add(name, Dtype::f32, {rows, 2});
        EXPECT_THAT(refusal([&] { bind(made.checkpoint, shape); }),
                    HasSubstr(fmt::format("expected shape [1, 2], found [{}, 2]", rows)));
    }
    made.add(name, Dtype::f32, {1, 2});
    made.add("model.layers.0.self_attn.v_proj.weight_scale_inv", Dtype::f32, {8, 2});
    EXPECT_THAT(refusal([&] { bind(made.checkpoint, shape); }), HasSubstr("v_proj"));
}

// ------------------------------------------------------------------------------- fused rows, FP8

// Element (row, column) of a fused matrix, from its published description and nothing of src/: the
// scales restart in each of `chunks` chunks.
float fused_element(const SeededCheckpoint& made, const std::string& module, uint64_t chunks,
                    uint64_t row, uint64_t column) {
    const Tensor& weight = made.checkpoint.tensors.at(module + ".weight");
    const Tensor& scales = made.checkpoint.tensors.at(module + ".weight_scale_inv");
    const uint64_t chunk_rows = weight.shape[0] / chunks, columns = weight.shape[1];
    const uint64_t scale_row =
        row / chunk_rows * ((chunk_rows + 127) / 128) + row % chunk_rows / 128;
    const uint64_t scale_column = column / 128;
    float scale;
    std::memcpy(&scale, &scales.bytes[4 * (scale_row * scales.shape[1] + scale_column)], 4);
    const auto code = std::to_integer<unsigned>(weight.bytes[row * columns + column]);
    const int exponent = static_cast<int>(code >> 3 & 15);
    const double fraction = (code & 7) / 8.0;
    const double magnitude =
        exponent == 0 ? std::ldexp(fraction, -6) : std::ldexp(1 + fraction, exponent - 7);
    return static_cast<float>((code & 128 ? -magnitude : magnitude) * scale);
}

// Row `row` of q, k or v in the fused matrix: `part_rows` of them, `before` rows into each chunk.
uint64_t fused_row(uint64_t row, uint64_t part_rows, uint64_t before, uint64_t all_rows,
                   uint64_t chunks) {
    const uint64_t run = part_rows / chunks;
    return row / run * (all_rows / chunks) + before + row % run;
}

void expect_fused(const Json& config) {
    const Shape shape = shape_of(config);
    SeededCheckpoint made = test::seeded_checkpoint(shape, 5);
    // A scale of its own for every block, all powers of two: products are exact.
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
        const Tensor& scales = made.checkpoint.tensors.at(
            fmt::format("model.layers.{}.self_attn.qkv_proj.weight_scale_inv", layer));
        for (uint64_t i = 0; i < scales.bytes.size() / 4; ++i) {
            const float scale = std::ldexp(1.0f, static_cast<int>(i) - 8);
            std::memcpy(const_cast<std::byte*>(&scales.bytes[4 * i]), &scale, 4);
        }
    }
    const Weights weights = bind(made.checkpoint, shape);
    const uint64_t chunks = config["num_key_value_heads"];
    std::vector<float> out(shape.hidden);
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
        const std::string module = fmt::format("model.layers.{}.self_attn.qkv_proj", layer);
        const bool sliding = config["hybrid_layer_pattern"][layer] == 1;
        const uint64_t kv = config[sliding ? "swa_num_key_value_heads" : "num_key_value_heads"];
        const uint64_t q_rows =
            uint64_t{config["num_attention_heads"]} * uint64_t{config["head_dim"]};
        const uint64_t k_rows = kv * uint64_t{config["head_dim"]};
        const uint64_t v_rows = kv * uint64_t{config["v_head_dim"]};
        const uint64_t all = q_rows + k_rows + v_rows;
        ASSERT_NE(all / chunks % 128, 0u);
        ASSERT_GT(all / chunks, 128u);
        struct PartOf {
            const Matrix& matrix;
            uint64_t rows, before;
        };
        const LayerWeights& w = weights.layers[layer];
        for (const PartOf& part : {PartOf{w.q, q_rows, 0}, PartOf{w.k, k_rows, q_rows / chunks},
                                   PartOf{w.v, v_rows, (q_rows + k_rows) / chunks}}) {
            ASSERT_EQ(part.matrix.rows, part.rows);
            for (uint32_t row = 0; row < part.rows; ++row) {
                dequantize_row(part.matrix, row, out);
                const uint64_t stored = fused_row(row, part.rows, part.before, all, chunks);
                for (uint32_t c = 0; c < shape.hidden; ++c) {
                    ASSERT_EQ(out[c], fused_element(made, module, chunks, stored, c))
                        << module << " part " << part.before << " row " << row << " column " << c;
                }
            }
        }
    }
}

TEST(Fused, RowsAndScalesRestartInEveryChunk) {
    expect_fused(toy_fused_fp8());
}

TEST(Fused, EightChunksAsPro) {
    Json config = toy_fused_fp8();
    config["num_attention_heads"] = config["swa_num_attention_heads"] = 24;
    config["num_key_value_heads"] = config["swa_num_key_value_heads"] = 8;
    expect_fused(config);
}

TEST(Fused, OneChunk) {
    Json config = toy_fused_fp8();
    config["num_key_value_heads"] = 1;
    expect_fused(config);
}

// Values that a product with the scale does not represent in bf16 are rounded to it.
TEST(Fp8, RoundsToBf16) {
    const std::byte code{0x3f};  // 1.875
    const float scale = 1.0f + 0x1p-9f;
    const Matrix one{Format::fp8, 1, 1, &code, reinterpret_cast<const std::byte*>(&scale), 1, 1, 0};
    float out = 0;
    dequantize_row(one, 0, {&out, 1});
    EXPECT_EQ(out, 1.875f);
}

// ---------------------------------------------------------------------------------- MXFP4 experts

TEST(Mxfp4, LowNibbleFirstOneScaleEachThirtyTwo) {
    constexpr float kValues[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    const Shape shape = shape_of(toy_fused_mxfp4());
    SeededCheckpoint made = test::seeded_checkpoint(shape, 5);
    const Weights weights = bind(made.checkpoint, shape);
    for (uint32_t e = 0; e < shape.experts; ++e) {
        const FeedForward& expert = weights.layers[1].experts[e];
        for (const auto& [matrix, name] :
             {std::pair(&expert.gate, "gate_proj"), std::pair(&expert.up, "up_proj"),
              std::pair(&expert.down, "down_proj")}) {
            const std::string module = fmt::format("model.layers.1.mlp.experts.{}.{}", e, name);
            const auto data = made.checkpoint.tensors.at(module + ".weight").bytes;
            const auto scales = made.checkpoint.tensors.at(module + ".weight_scale").bytes;
            const uint64_t columns = matrix->columns;
            std::vector<float> out(columns);
            for (uint32_t row = 0; row < matrix->rows; ++row) {
                dequantize_row(*matrix, row, out);
                for (uint64_t c = 0; c < columns; ++c) {
                    const auto byte = std::to_integer<unsigned>(data[row * (columns / 2) + c / 2]);
                    const unsigned nibble = c % 2 == 0 ? byte & 15 : byte >> 4;
                    const auto power =
                        std::to_integer<int>(scales[row * (columns / 32) + c / 32]) - 127;
                    const float value = std::ldexp(kValues[nibble & 7], power);
                    ASSERT_EQ(out[c], nibble & 8 ? -value : value) << module << row << " " << c;
                }
            }
        }
    }
}

}  // namespace
}  // namespace tessera
