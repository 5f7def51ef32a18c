// The door, with the bundled model: it loads, writes the same text for the same seed, and refuses
// folders that are not what they should be. That the load works is also the test that exported
// checkpoints have the published layout.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/memory.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/refusal.h"
#include "checkpoint/scratch_folder.h"
#include "tessera/session.h"
#include "weights/inventory.h"

#include "support/safetensors_writer.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using test::refusal;
using test::ScratchFolder;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::MatchesRegex;

const fs::path kBundled = TESSERA_MODEL;
constexpr uint32_t kTokens = 16;  // of a text: enough to differ, few enough for a sanitized build

const Model& bundled() {
    static const Model model = Model::load(kBundled);
    return model;
}

std::vector<Token> write_text(Session& session) {
    std::vector<Token> text;
    while (text.size() < kTokens) text.push_back(session.next());
    return text;
}

std::vector<Token> sampled(uint64_t seed, float temperature) {
    Sampling sampling;
    sampling.temperature = temperature;
    sampling.seed = seed;
    Session session(bundled(), sampling);
    session.append(bundled().encode("def add(a, b):"));
    return write_text(session);
}

// ----------------------------------------------------------------------------------------- model

TEST(BundledModel, SaysWhatItIs) {
    const ModelInfo& info = bundled().info();
    EXPECT_THAT(info.summary, HasSubstr("tessera-mini: mimo_v2, 11 layers, hidden 384, 16 experts "
                                        "(top 2), MXFP4 experts; "));
    EXPECT_EQ(info.context_tokens, 2048u);
    EXPECT_EQ(info.vocab, 4096u);
    EXPECT_THAT(info.end_tokens, ElementsAre(0, 2));
    EXPECT_TRUE(bundled().is_end(0));
    EXPECT_FALSE(bundled().is_end(1));
    EXPECT_TRUE(bundled().is_end(2));
    EXPECT_EQ(info.recommended.temperature, 1.0f);
    EXPECT_EQ(info.recommended.top_p, 0.95f);
    EXPECT_FALSE(info.recommended.problem());
}

TEST(BundledModel, HasFiftyEightMillionParameters) {
    const Checkpoint checkpoint = open_checkpoint(kBundled);
    uint64_t parameters = 0, bytes = 0;
    for (const RequiredTensor& required :
         target_inventory(parse_shape(checkpoint.config, "mini"))) {
        bytes += checkpoint.tensors.at(required.name).bytes.size();
        if (required.name.find("weight_scale") != std::string::npos) continue;
        parameters += required.elements() * (required.dtypes.front() == Dtype::u8 ? 2 : 1);
    }
    EXPECT_EQ(parameters / 1'000'000, 58u) << parameters;
    LoadOptions alone;
    alone.drafter = false;
    EXPECT_EQ(Model::load(kBundled, alone).info().weight_bytes, bytes);
    EXPECT_GT(bundled().info().weight_bytes, bytes) << "the drafter's too";
}

TEST(BundledModel, SpellingsOfSpecialTokensAreText) {
    for (const Token token : bundled().encode("<|im_end|><|endoftext|>")) {
        EXPECT_FALSE(bundled().is_end(token));
    }
    const std::vector<Turn> turns = {{Role::kUser, "Hello"}};
    EXPECT_THAT(bundled().encode_chat(turns), testing::Contains(2u));
}

TEST(Load, ReportsProgressUpToTheTotal) {
    uint64_t last = 0, total_bytes = 0;
    LoadOptions options;
    options.threads = 2;
    options.progress = [&](uint64_t done, uint64_t total) {
        EXPECT_LE(done, total);
        last = done;
        total_bytes = total;
    };
    const Model model = Model::load(kBundled, options);
    EXPECT_EQ(last, total_bytes);
    // What is packed: all but the embedding, in whole panels, and the drafter without a word.
    EXPECT_GT(total_bytes, model.info().weight_bytes * 8 / 10);
}

// Bytes of a "VmHWM:"-like line of /proc/self/status.
uint64_t process_bytes(std::string_view key) {
    std::ifstream status("/proc/self/status");
    std::string word;
    uint64_t kib = 0;
    while (status >> word) {
        if (word == key && status >> kib) break;
    }
    return kib << 10;
}

// The packed weights, and of the file no more than what is being packed. What comes on top: the
// tokenizer (4096 tokens), the index, the shape of every tensor, nine programs, stacks of threads.
TEST(Load, PeakMemoryIsTheWeights) {
#ifdef __SANITIZE_ADDRESS__
    GTEST_SKIP() << "the sanitizer's own memory is not the engine's";
#endif
    // 12 MiB for all else, and what the fp8 weights of so small a model grow by when unpacked.
    constexpr uint64_t kAllowance = uint64_t{12 + 6} << 20;
    std::ofstream("/proc/self/clear_refs") << 5;  // the peak starts again from here
    const uint64_t before = process_bytes("VmHWM:");
    ASSERT_GT(before, 0u);
    const Model model = Model::load(kBundled);
    const uint64_t grown = process_bytes("VmHWM:") - before;
    const uint64_t weights = model.info().weight_bytes;
    std::printf("weights %.1f MB, peak grew by %.1f MB, %.1f MB beside the weights\n",
                1e-6 * static_cast<double>(weights), 1e-6 * static_cast<double>(grown),
                1e-6 * (static_cast<double>(grown) - static_cast<double>(weights)));
    EXPECT_LE(grown, weights + weights / 20 + kAllowance);
}

// --------------------------------------------------------------------------------------- session

TEST(Session, PromptInOneCallOrManyGivesTheSameText) {
    std::string prompt;
    for (int i = 0; i < 12; ++i) prompt += fmt::format("def f{0}(x):\n    return x + {0}\n\n", i);
    const std::vector<Token> tokens = bundled().encode(prompt);
    ASSERT_GT(tokens.size(), 130u);  // past the sliding window, in more than two pieces
    Session whole(bundled(), {});
    EXPECT_TRUE(whole.append(tokens));
    const std::vector<Token> text = write_text(whole);

    Session pieces(bundled(), {});
    for (size_t at = 0, size = 1; at < tokens.size(); at += size, size = size * 3 % 50 + 1) {
        size = std::min(size, tokens.size() - at);
        EXPECT_TRUE(pieces.append(std::span(tokens).subspan(at, size)));
    }
    EXPECT_EQ(write_text(pieces), text);
    EXPECT_EQ(pieces.stats().hash, whole.stats().hash);
    EXPECT_EQ(pieces.stats().prompt_tokens, tokens.size());
    EXPECT_EQ(pieces.stats().tokens, kTokens);
    EXPECT_EQ(whole.room(), 2048 - tokens.size() - kTokens);
}

// What was written is read as if it had been the prompt.
TEST(Session, GoesOnAfterItsOwnText) {
    const std::vector<Token> prompt = bundled().encode("import os\n");
    const std::vector<Token> turn = bundled().encode("\n# and then\n");
    Session session(bundled(), {});
    session.append(prompt);
    std::vector<Token> all = prompt;
    for (int i = 0; i < 4; ++i) all.push_back(session.next());
    session.append(turn);
    all.insert(all.end(), turn.begin(), turn.end());
    Session fresh(bundled(), {});
    fresh.append(all);
    EXPECT_EQ(write_text(session), write_text(fresh));
}

TEST(Session, SameSeedSameText) {
    EXPECT_EQ(sampled(1, 1), sampled(1, 1));
    EXPECT_NE(sampled(1, 1), sampled(2, 1));
    EXPECT_EQ(sampled(1, 0), sampled(2, 0));
}

TEST(Session, StopsReadingWhenAsked) {
    const std::vector<Token> tokens(200, 65);
    Session session(bundled(), {});
    int asked = 0;
    EXPECT_FALSE(session.append(tokens, [&] { return ++asked < 2; }));
    EXPECT_EQ(asked, 2);
    EXPECT_EQ(session.stats().prompt_tokens, 128u);
    EXPECT_EQ(session.room(), 2048u - 128u);
}

TEST(Session, OutlivesTheModelItCameFrom) {
    std::optional<Model> model(Model::load(kBundled));
    Session session(*model, {});
    const std::vector<Token> prompt = model->encode("def add(a, b):");
    model.reset();
    session.append(prompt);
    EXPECT_EQ(write_text(session), sampled(0, 0));
}

// -------------------------------------------------------------------------------------- refusals

std::string refused(const fs::path& folder) {
    return refusal([&] { Model::load(folder); });
}

// The small files of the bundled model, without its shards.
void copy_small_files(const ScratchFolder& scratch) {
    for (const auto& file : fs::directory_iterator(kBundled)) {
        if (file.path().extension() == ".json") {
            fs::copy_file(file, scratch.path() / file.path().filename());
        }
    }
}

TEST(Load, RefusesFoldersThatLackAFile) {
    EXPECT_THAT(refused("/nowhere/at all"), HasSubstr("/nowhere/at all"));
    const ScratchFolder scratch;
    copy_small_files(scratch);
    EXPECT_THAT(refused(scratch.path()),
                AllOf(HasSubstr("incomplete"), HasSubstr("model-00001-of-00004.safetensors")));
    fs::remove(scratch.path() / "tokenizer.json");
    EXPECT_THAT(refused(scratch.path()), HasSubstr("tokenizer.json"));
    fs::remove(scratch.path() / "config.json");
    EXPECT_THAT(refused(scratch.path()), HasSubstr("config.json"));
}

TEST(Load, RefusesATruncatedShard) {
    const ScratchFolder scratch;
    fs::copy(kBundled, scratch.path(), fs::copy_options::recursive);
    const fs::path shard = scratch.path() / "model-00003-of-00004.safetensors";
    fs::resize_file(shard, fs::file_size(shard) - 1);
    EXPECT_THAT(refused(scratch.path()), HasSubstr("model-00003-of-00004.safetensors"));
    fs::resize_file(shard, 5);
    EXPECT_THAT(refused(scratch.path()), HasSubstr("model-00003-of-00004.safetensors"));
}

TEST(Load, RefusesATokenizerLargerThanTheVocabulary) {
    const ScratchFolder scratch;
    copy_small_files(scratch);
    Json config = parse_json(read_text_file(kBundled / "config.json"), "config.json");
    config["vocab_size"] = 4095;
    scratch.write("config.json", config.dump());
    EXPECT_THAT(refused(scratch.path()),
                HasSubstr("the tokenizer has 4096 tokens, the model's vocab_size is 4095"));
}

TEST(Load, RefusesBadGenerationConfigs) {
    const ScratchFolder scratch;
    copy_small_files(scratch);
    scratch.write("generation_config.json", R"({"eos_token_id": 4096})");
    EXPECT_THAT(refused(scratch.path()),
                AllOf(HasSubstr("generation_config.json"), HasSubstr("eos_token_id")));
}

// A sparse file: it claims more than there is memory and takes none of the disk.
TEST(Load, RefusesMoreThanMemoryBeforeReading) {
    constexpr uint64_t kVocab = uint64_t{1} << 24;
    const uint64_t hidden = available_memory_bytes() / (4 * kVocab) + 64;
    ASSERT_LT(hidden, uint64_t{1} << 20);
    Json config = parse_json(read_text_file(kBundled / "config.json"), "config.json");
    config.erase("quantization_config");
    config.update({{"hidden_size", hidden},
                   {"vocab_size", kVocab},
                   {"num_hidden_layers", 1},
                   {"hybrid_layer_pattern", {0}},
                   {"moe_layer_freq", {0}}});
    uint64_t end = 0;
    Json header = Json::object();
    for (const RequiredTensor& required : target_inventory(parse_shape(config, "large"))) {
        const uint64_t begin = end;
        end += required.bytes();
        header[required.name] = {
            {"dtype", "BF16"}, {"shape", required.shape}, {"data_offsets", {begin, end}}};
    }
    const ScratchFolder scratch;
    fs::copy_file(kBundled / "tokenizer.json", scratch.path() / "tokenizer.json");
    scratch.write("config.json", config.dump());
    const std::string head = test::safetensors_file(header.dump(), "");
    fs::resize_file(scratch.write("model.safetensors", head), head.size() + end);

    LoadOptions options;
    options.progress = [](uint64_t, uint64_t) { ADD_FAILURE() << "weights were read"; };
    EXPECT_THAT(refusal([&] { Model::load(scratch.path(), options); }),
                MatchesRegex("the weights are [0-9.]+ .iB, "
                             "this machine has [0-9.]+ .iB of memory available: .*"));
}

}  // namespace
}  // namespace tessera
