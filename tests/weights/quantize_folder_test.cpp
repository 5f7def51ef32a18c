// Folders on disk: a toy with bf16 or FP8 experts becomes MXFP4, is killed and goes on, or is
// refused.
#include "weights/quantize_folder.h"

#include <cmath>
#include <cstring>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/refusal.h"
#include "checkpoint/scratch_folder.h"
#include "checkpoint/shard_writer.h"
#include "weights/difference.h"
#include "weights/quantize_journal.h"

#include "support/seeded.h"
#include "support/toys.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using test::refusal;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;

enum class Source { bf16, fp8, bf16_experts };

Json source_config(Source source) {
    Json config = test::toy_config();
    auto& q = config["quantization_config"];
    q.erase("store_dtype");
    q.erase("mxfp4_block_size");
    if (source == Source::bf16) config.erase("quantization_config");
    if (source == Source::bf16_experts)
        for (uint32_t layer = 1; layer < 4; ++layer)
            for (uint32_t e = 0; e < 12; ++e)
                for (const char* part : {"gate", "up", "down"})
                    q["ignored_layers"].push_back(
                        fmt::format("model.layers.{}.mlp.experts.{}.{}_proj", layer, e, part));
    return config;
}

// A folder of `shards` shards, with a tensor that no step reads and files that are none.
class Folder {
  public:
    explicit Folder(Source source, size_t shards = 3)
        : config_(source_config(source)),
          made_(test::seeded_checkpoint(parse_shape(config_, "toy"), 5)) {
        made_.add("model.mtp.layers.0.enorm.weight", Dtype::bf16, {160});
        scratch_.write("in/config.json", config_.dump(1));
        scratch_.write("in/tokenizer.json", "{\"not\": \"read\"}");
        scratch_.write("in/dflash/model.safetensors", "anything");
        scratch_.write("in/.cache/of_some_tool", "left out");
        write(shards);
    }

    fs::path in() const { return scratch_.path() / "in"; }
    fs::path out() const { return scratch_.path() / "out"; }
    fs::path partial() const { return scratch_.path() / "out.partial"; }

    QuantizeRequest request() const {
        QuantizeRequest request;
        request.in = in();
        request.out = out();
        request.threads = 2;
        return request;
    }

    std::vector<std::byte>& bytes_of(const std::string& name) {
        for (auto& storage : made_.storage)
            if (storage.data() == made_.checkpoint.tensors.at(name).bytes.data()) return storage;
        ADD_FAILURE() << name;
        return made_.storage.front();
    }

    // Weights and scales of one matrix may lie in different shards: names are dealt out in turn.
    void write(size_t shards) {
        shards_ = shards;
        std::vector<std::vector<std::string>> names(shards);
        Json index = {{"metadata", {{"total_size", 0}, {"tp_size", 4}}}, {"weight_map", {}}};
        size_t next = 0;
        for (const auto& [name, tensor] : made_.checkpoint.tensors) {
            const size_t shard = next++ % shards;
            names[shard].push_back(name);
            index["weight_map"][name] = shard_name(shard);
        }
        for (size_t shard = 0; shard < shards; ++shard) {
            std::vector<ShardTensor> tensors;
            for (const std::string& name : names[shard]) {
                const Tensor& t = made_.checkpoint.tensors.at(name);
                tensors.push_back({name, t.dtype, t.shape});
            }
            ShardWriter writer(in() / shard_name(shard), tensors);
            for (const std::string& name : names[shard])
                writer.write(made_.checkpoint.tensors.at(name).bytes);
            writer.finish();
        }
        if (shards > 1) scratch_.write("in/model.safetensors.index.json", index.dump());
    }

    std::string shard_name(size_t shard) const {
        return shard == 0 && shards_ == 1 ? "model.safetensors"
                                          : fmt::format("model-{}.safetensors", shard);
    }

  private:
    test::ScratchFolder scratch_;
    Json config_;
    test::SeededCheckpoint made_;
    size_t shards_ = 3;
};

// Every expert of OUT is what quantize_row makes of the row as IN has it; all else is the same.
void expect_rounded(const Folder& folder, BlockRounding rounding) {
    const Checkpoint in = open_checkpoint(folder.in()), out = open_checkpoint(folder.out());
    const Shape in_shape = parse_shape(in.config, "in"), out_shape = parse_shape(out.config, "out");
    ASSERT_TRUE(out_shape.quantization.mxfp4_experts);
    const Weights before = bind(in, in_shape), after = bind(out, out_shape);
    const Differences found = compare_weights(before, after, 1);
    for (const auto& [part, difference] : found.parts) {
        if (part == Part::experts) continue;
        EXPECT_EQ(difference.changed, 0u) << part_name(part);
    }
    EXPECT_THAT(other_differences(in, out), IsEmpty());
    const Matrix &a = before.layers[2].experts[7].down, &b = after.layers[2].experts[7].down;
    std::vector<float> values(a.columns);
    for (uint32_t row = 0; row < a.rows; ++row) {
        dequantize_row(a, row, values);
        std::vector<std::byte> codes(a.columns / 2), scales(a.columns / kMxBlock);
        ASSERT_TRUE(quantize_row(values, rounding, {}, codes, scales));
        ASSERT_EQ(std::memcmp(b.data + row * codes.size(), codes.data(), codes.size()), 0) << row;
        ASSERT_EQ(std::memcmp(b.scales + row * scales.size(), scales.data(), scales.size()), 0);
    }
}

class QuantizeFolder : public testing::TestWithParam<Source> {};

TEST_P(QuantizeFolder, RoundsExpertsAndNothingElse) {
    for (const size_t shards : {1, 3}) {
        for (const BlockRounding rounding : {BlockRounding::nearest, BlockRounding::mse}) {
            const Folder folder(GetParam(), shards);
            QuantizeRequest request = folder.request();
            request.rounding = rounding;
            uint64_t last = 0, total = 0;
            request.progress = [&](uint64_t done, uint64_t all) {
                EXPECT_GE(done, last);
                last = done;
                total = all;
            };
            const QuantizeReport report = quantize_folder(request);
            EXPECT_EQ(report.matrices, 3u * 12 * 3);
            EXPECT_EQ(report.shards, shards);
            EXPECT_EQ(report.shards_kept, 0u);
            EXPECT_EQ(last, total);
            EXPECT_FALSE(exists(folder.partial()));
            EXPECT_FALSE(exists(folder.out() / "quantize.journal"));
            EXPECT_FALSE(exists(folder.out() / ".cache"));
            expect_rounded(folder, rounding);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(From, QuantizeFolder,
                         testing::Values(Source::bf16, Source::fp8, Source::bf16_experts),
                         [](const auto& test) {
                             return test.param == Source::bf16  ? "Bf16"
                                    : test.param == Source::fp8 ? "Fp8"
                                                                : "Bf16ExpertsOfFp8";
                         });

TEST(QuantizedConfig, KeepsKeysInOrderAndSaysWhatChanged) {
    const auto config = nlohmann::ordered_json::parse(
        R"({"z": 1e-05, "quantization_config": {"quant_method": "fp8", "ignored_layers": ["a",
            "model.layers.1.mlp.experts.0.up_proj"]}, "a": [1]})");
    EXPECT_EQ(quantized_config(config, {}).dump(),
              R"({"z":1e-05,"quantization_config":{"quant_method":"fp8","ignored_layers":["a"],)"
              R"("store_dtype":"mxfp4","mxfp4_block_size":32},"a":[1]})");
    const auto plain =
        quantized_config(nlohmann::ordered_json::parse(R"({"a": 1})"), {"m.q", "m.o"});
    EXPECT_EQ(plain["quantization_config"]["ignored_layers"].dump(), R"(["m.q","m.o"])");
    EXPECT_EQ(plain["quantization_config"]["store_dtype"], "mxfp4");
}

TEST(QuantizeFolder, TheIndexNamesWhatIsThere) {
    const Folder folder(Source::fp8);
    quantize_folder(folder.request());
    std::ifstream file(folder.out() / "model.safetensors.index.json");
    const Json index = Json::parse(file);
    EXPECT_EQ(index["metadata"]["tp_size"], 4);
    uint64_t bytes = 0;
    const Checkpoint out = open_checkpoint(folder.out());
    for (const auto& [name, tensor] : out.tensors) {
        EXPECT_TRUE(index["weight_map"].contains(name)) << name;
        bytes += tensor.bytes.size();
    }
    EXPECT_EQ(index["metadata"]["total_size"], bytes);
    EXPECT_EQ(index["weight_map"].size(), out.tensors.size());
}

TEST(QuantizeFolder, WhatWasFinishedIsKept) {
    const Folder folder(Source::bf16);
    QuantizeRequest request = folder.request();
    // Stops in the second shard, as a kill would: the first is there, the journal says so.
    struct Killed {};
    uint64_t calls = 0;
    request.progress = [&](uint64_t done, uint64_t total) {
        ++calls;
        if (done > total / 2) throw Killed{};
    };
    EXPECT_THROW(quantize_folder(request), Killed);
    ASSERT_TRUE(exists(folder.partial() / folder.shard_name(0)));
    EXPECT_FALSE(exists(folder.out()));
    const auto written = last_write_time(folder.partial() / folder.shard_name(0));
    // A line that the kill cut off, and a shard that it left half written.
    std::ofstream(folder.partial() / "quantize.journal", std::ios::app) << "{\"shard\": \"mod";
    std::ofstream(folder.partial() / (folder.shard_name(1) + ".tmp")) << "half";
    request.progress = {};
    const QuantizeReport report = quantize_folder(request);
    EXPECT_EQ(report.shards_kept, 1u);
    EXPECT_EQ(last_write_time(folder.out() / folder.shard_name(0)), written);
    EXPECT_FALSE(exists(folder.out() / (folder.shard_name(1) + ".tmp")));
    expect_rounded(folder, BlockRounding::nearest);
}

TEST(QuantizeFolder, GoesOnOnlyWithTheSameJob) {
    const Folder folder(Source::bf16);
    QuantizeRequest request = folder.request();
    request.progress = [](uint64_t, uint64_t) { throw 1; };
    EXPECT_THROW(quantize_folder(request), int);
    request.progress = {};
    request.rounding = BlockRounding::mse;
    EXPECT_THAT(refusal([&] { quantize_folder(request); }), HasSubstr("with other options"));
    request.rounding = BlockRounding::nearest;
    request.details = "another text";
    EXPECT_THAT(refusal([&] { quantize_folder(request); }), HasSubstr("with other options"));
    request.details = "";
    quantize_folder(request);
    expect_rounded(folder, BlockRounding::nearest);
}

TEST(QuantizeFolder, OnlyOneProcessWrites) {
    const Folder folder(Source::bf16);
    fs::create_directory(folder.partial());
    const QuantizeJournal other(folder.partial(), {{"job", "of another process"}});
    EXPECT_THAT(refusal([&] { quantize_folder(folder.request()); }),
                HasSubstr("another process is writing"));
}

TEST(QuantizeFolder, RefusesWhatItWouldOverwriteOrHasNothingToDoWith) {
    const Folder folder(Source::bf16);
    QuantizeRequest request = folder.request();
    quantize_folder(request);
    EXPECT_THAT(refusal([&] { quantize_folder(request); }), HasSubstr("exists already"));
    request.out = folder.out().string() + "/";
    EXPECT_THAT(refusal([&] { quantize_folder(request); }), HasSubstr("exists already"));
    request.in = folder.out();
    request.out = folder.out().string() + "2";
    EXPECT_THAT(refusal([&] { quantize_folder(request); }), HasSubstr("MXFP4 already"));
    EXPECT_THAT(refusal([&] { check_request(request); }), HasSubstr("MXFP4 already"));
    request.in = "/nowhere";
    EXPECT_THAT(refusal([&] { quantize_folder(request); }), HasSubstr("/nowhere"));
}

TEST(QuantizeFolder, NamesTheTensorOfANaN) {
    for (const BlockRounding rounding : {BlockRounding::nearest, BlockRounding::mse}) {
        Folder folder(Source::bf16);
        const std::string name = "model.layers.3.mlp.experts.4.up_proj.weight";
        const uint16_t bad = rounding == BlockRounding::nearest ? 0x7fc0 : 0xff80;
        std::memcpy(&folder.bytes_of(name)[2 * (5 * 160 + 33)], &bad, 2);
        folder.write(3);
        QuantizeRequest request = folder.request();
        request.rounding = rounding;
        EXPECT_THAT(refusal([&] { quantize_folder(request); }),
                    AllOf(HasSubstr(name), HasSubstr("row 5, column 33"),
                          HasSubstr(rounding == BlockRounding::nearest ? "NaN" : "infinite")));
        EXPECT_FALSE(exists(folder.out()));
    }
}

TEST(QuantizeFolder, ColumnWeightsDecide) {
    const Folder folder(Source::bf16);
    QuantizeRequest request = folder.request();
    request.rounding = BlockRounding::mse;
    uint64_t asked = 0;
    request.column_weights = [&](const std::string& module) {
        ++asked;
        std::vector<float> weights(module.ends_with("down_proj") ? 256 : 160, 1e-6f);
        weights[3] = 1;
        return weights;
    };
    quantize_folder(request);
    EXPECT_EQ(asked, 3u * 12 * 3);
    const Checkpoint in = open_checkpoint(folder.in()), out = open_checkpoint(folder.out());
    const Weights before = bind(in, parse_shape(in.config, "in"));
    const Weights after = bind(out, parse_shape(out.config, "out"));
    // Column 3 fares better than its neighbours.
    double own = 0, others = 0;
    std::vector<float> a(160), b(160);
    for (uint32_t row = 0; row < 256; ++row) {
        dequantize_row(before.layers[1].experts[0].up, row, a);
        dequantize_row(after.layers[1].experts[0].up, row, b);
        own += std::pow(a[3] - b[3], 2);
        for (uint32_t c = 4; c < 32; ++c) others += std::pow(a[c] - b[c], 2) / 28;
    }
    EXPECT_LT(own, 0.6 * others);
}

TEST(Difference, MeasuresWhatWasChanged) {
    Folder folder(Source::bf16);
    const Checkpoint a = open_checkpoint(folder.in());
    const Weights original = bind(a, parse_shape(a.config, "a"));
    Folder changed(Source::bf16);
    const std::string name = "model.layers.0.self_attn.o_proj.weight";
    uint16_t bits;
    std::memcpy(&bits, &changed.bytes_of(name)[2 * 17], 2);
    bits ^= 0x8000;
    std::memcpy(&changed.bytes_of(name)[2 * 17], &bits, 2);
    changed.bytes_of("model.mtp.layers.0.enorm.weight")[3] ^= std::byte{1};
    changed.write(3);
    const Checkpoint b = open_checkpoint(changed.in());
    const Weights other = bind(b, parse_shape(b.config, "b"));
    const Differences found = compare_weights(original, other, 2);
    const double value = std::abs(to_float({bits}));
    EXPECT_EQ(found.parts.at(Part::o_proj).changed, 1u);
    EXPECT_FLOAT_EQ(static_cast<float>(found.parts.at(Part::o_proj).largest),
                    static_cast<float>(2 * value));
    EXPECT_EQ(found.worst.matrix, "model.layers.0.self_attn.o_proj");
    EXPECT_NEAR(found.worst.found.snr_db(),
                10 * std::log10(found.worst.found.squares / (4 * value * value)), 1e-6);
    EXPECT_EQ(found.parts.at(Part::experts).changed, 0u);
    EXPECT_TRUE(std::isinf(found.parts.at(Part::experts).snr_db()));
    EXPECT_THAT(other_differences(a, b),
                testing::ElementsAre(HasSubstr("model.mtp.layers.0.enorm.weight")));
}

}  // namespace
}  // namespace tessera
