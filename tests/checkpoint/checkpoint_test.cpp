#include "checkpoint/checkpoint.h"

#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/refusal.h"
#include "checkpoint/scratch_folder.h"

#include "support/safetensors_writer.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using test::refusal;
using test::safetensors;
using test::ScratchFolder;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

constexpr const char* kIndex = "model.safetensors.index.json";

std::string refused_index(std::string_view text) {
    return refusal([&] { parse_index(text, "index"); });
}

std::string refused(const fs::path& folder) {
    return refusal([&] { open_checkpoint(folder); });
}

// A shard of one tensor of four bytes.
std::string shard(const std::string& name) {
    return safetensors({{name, Dtype::u8, {4}, "1234"}});
}

// a in a.safetensors, b in b.safetensors.
void write_two_shards(const ScratchFolder& scratch, const std::string& below = "") {
    scratch.write(below + "config.json", "{}");
    scratch.write(below + "a.safetensors", shard("a"));
    scratch.write(below + "b.safetensors", shard("b"));
    scratch.write(below + kIndex,
                  R"({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}})");
}

TEST(Index, ReadsNamesAndShards) {
    const auto index = parse_index(
        R"({"metadata": {"total_size": 1, "tp_size": 8},
            "weight_map": {"x": "model_pp0_ep1_shard0.safetensors", "y": "m.safetensors"}})",
        "index");
    EXPECT_THAT(index, ElementsAre(Pair("x", "model_pp0_ep1_shard0.safetensors"),
                                   Pair("y", "m.safetensors")));
}

TEST(Index, RefusesOtherForms) {
    for (const char* text : {"", "[]", "{}", R"({"weight_map": []})", R"({"weight_map": null})",
                             R"({"weight_map": {"x": 1}})", R"({"weight_map": {"x": null}})",
                             R"({"weight_map": {"x": ["a.safetensors"]}})",
                             R"({"weight_map": {"x": "a.safetensors"},})"}) {
        EXPECT_NE(refused_index(text), "accepted") << text;
    }
}

TEST(Index, RefusesDuplicateNames) {
    EXPECT_THAT(refused_index(R"({"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}})"),
                HasSubstr("twice"));
    EXPECT_THAT(refused_index(R"({"weight_map": {}, "weight_map": {}})"), HasSubstr("twice"));
}

TEST(Index, RefusesDepthBombs) {
    EXPECT_THAT(refused_index(std::string(1000000, '[')), HasSubstr("deeper"));
    EXPECT_THAT(refused_index(R"({"weight_map": )" + std::string(1000000, '{')),
                HasSubstr("deeper"));
}

TEST(Index, CannotPointOutsideItsFolder) {
    for (const char* name :
         {"", ".safetensors", "a.bin", "a.safetensors.bin", "../a.safetensors",
          "/etc/a.safetensors", "sub/a.safetensors", "..\\\\a.safetensors", "C:\\\\a.safetensors",
          "...safetensors", "a..safetensors", "a\\u0000.safetensors", "\\u0000.safetensors",
          "a\\n.safetensors", "a.SAFETENSORS", "a.safetensors/", "a.safetensors ",
          "file:///a.safetensors"}) {
        const std::string text = fmt::format(R"({{"weight_map": {{"x": "{}"}}}})", name);
        EXPECT_THAT(refused_index(text), AllOf(HasSubstr("\"x\""), HasSubstr("bare name"))) << name;
    }
}

TEST(Checkpoint, OpensShards) {
    const ScratchFolder scratch;
    write_two_shards(scratch);
    scratch.write("config.json", R"({"hidden_size": 8,})");
    const Checkpoint checkpoint = open_checkpoint(scratch.path());
    EXPECT_TRUE(checkpoint.complete());
    EXPECT_EQ(checkpoint.config["hidden_size"], 8);
    ASSERT_EQ(checkpoint.tensors.size(), 2u);
    const Tensor& b = checkpoint.tensors.at("b");
    EXPECT_THAT(b.shape, ElementsAre(4));
    EXPECT_EQ(std::string_view(reinterpret_cast<const char*>(b.bytes.data()), b.bytes.size()),
              "1234");
}

TEST(Checkpoint, OpensOneFileWithoutIndex) {
    const ScratchFolder scratch;
    scratch.write("config.json", "{}");
    scratch.write("model.safetensors", shard("a"));
    EXPECT_EQ(open_checkpoint(scratch.path()).tensors.count("a"), 1u);
}

TEST(Checkpoint, SaysWhatIsMissing) {
    const ScratchFolder scratch;
    write_two_shards(scratch);
    scratch.write(kIndex, R"({"weight_map": {"a": "a.safetensors", "a2": "a.safetensors",
                              "c": "c.safetensors", "d": "c.safetensors"}})");
    const Checkpoint checkpoint = open_checkpoint(scratch.path());
    EXPECT_FALSE(checkpoint.complete());
    EXPECT_THAT(checkpoint.missing, ElementsAre("no file c.safetensors, which holds 2 tensors",
                                                "no tensor \"a2\" in a.safetensors"));
}

TEST(Checkpoint, IncludesTensorsThatTheIndexForgot) {
    const ScratchFolder scratch;
    write_two_shards(scratch);
    scratch.write(kIndex, R"({"weight_map": {"a": "a.safetensors"}})");
    scratch.write("a.safetensors",
                  safetensors({{"a", Dtype::u8, {1}, "1"}, {"z", Dtype::u8, {1}, "2"}}));
    const Checkpoint checkpoint = open_checkpoint(scratch.path());
    EXPECT_TRUE(checkpoint.complete());
    EXPECT_EQ(checkpoint.tensors.count("z"), 1u);
}

TEST(Checkpoint, RefusesAFolderThatIsNone) {
    const ScratchFolder scratch;
    EXPECT_THAT(refused(scratch.path() / "absent"), HasSubstr("no such checkpoint folder"));
    EXPECT_THAT(refused(scratch.write("file", "")), HasSubstr("found a file"));
    EXPECT_THAT(refused(scratch.path()), HasSubstr("config.json"));
    scratch.write("config.json", "{}");
    EXPECT_THAT(refused(scratch.path()), HasSubstr("found neither"));
}

TEST(Checkpoint, RefusesABrokenConfig) {
    const ScratchFolder scratch;
    write_two_shards(scratch);
    for (const char* config : {"", "[]", "1", "{\"a\": NaN}", "{\"a\": 1, \"a\": 1}"}) {
        scratch.write("config.json", config);
        EXPECT_THAT(refused(scratch.path()), HasSubstr("config.json")) << config;
    }
    fs::remove(scratch.path() / "config.json");
    fs::create_directory(scratch.path() / "config.json");
    EXPECT_THAT(refused(scratch.path()), HasSubstr("a folder"));
}

TEST(Checkpoint, RefusesANameInTwoShards) {
    const ScratchFolder scratch;
    write_two_shards(scratch);
    scratch.write("b.safetensors",
                  safetensors({{"a", Dtype::u8, {1}, "1"}, {"b", Dtype::u8, {1}, "2"}}));
    EXPECT_THAT(refused(scratch.path()),
                AllOf(HasSubstr("\"a\""), HasSubstr("a.safetensors"), HasSubstr("b.safetensors")));
}

TEST(Checkpoint, RefusesATensorInAnotherShardThanPromised) {
    const ScratchFolder scratch;
    write_two_shards(scratch);
    scratch.write(kIndex, R"({"weight_map": {"a": "b.safetensors", "b": "a.safetensors"}})");
    EXPECT_THAT(refused(scratch.path()),
                AllOf(HasSubstr("\"a\""), HasSubstr("expected in b.safetensors"),
                      HasSubstr("found in a.safetensors")));
}

TEST(Checkpoint, RefusesATruncatedShard) {
    const ScratchFolder scratch;
    write_two_shards(scratch);
    const std::string whole = shard("b");
    scratch.write("b.safetensors", whole.substr(0, whole.size() - 1));
    EXPECT_THAT(refused(scratch.path()),
                AllOf(HasSubstr("b.safetensors"), HasSubstr("fetch it again")));
}

TEST(Checkpoint, RefusesLinksThatLeadOut) {
    const ScratchFolder scratch;
    scratch.write("out.safetensors", shard("b"));
    scratch.write("model-evil/b.safetensors", shard("b"));  // its path begins like the folder's
    scratch.write("out.json", "{}");
    for (const char* target : {"../out.safetensors", "../model-evil/b.safetensors"}) {
        write_two_shards(scratch, "model/");
        fs::remove(scratch.path() / "model/b.safetensors");
        fs::create_symlink(target, scratch.path() / "model/b.safetensors");
        EXPECT_THAT(refused(scratch.path() / "model"), HasSubstr("leads out of the folder"))
            << target;
        fs::remove(scratch.path() / "model/b.safetensors");
    }
    for (const char* name : {"config.json", kIndex}) {
        write_two_shards(scratch, "model/");
        fs::remove(scratch.path() / "model" / name);
        fs::create_symlink(scratch.path() / "out.json", scratch.path() / "model" / name);
        EXPECT_THAT(refused(scratch.path() / "model"), HasSubstr("leads out of the folder"))
            << name;
        fs::remove(scratch.path() / "model" / name);
    }
}

TEST(Checkpoint, FollowsLinksThatStay) {
    const ScratchFolder scratch;
    write_two_shards(scratch, "model/");
    fs::rename(scratch.path() / "model/b.safetensors", scratch.path() / "model/other");
    fs::create_symlink("other", scratch.path() / "model/b.safetensors");
    fs::create_directory_symlink("model", scratch.path() / "link");
    EXPECT_TRUE(open_checkpoint(scratch.path() / "model").complete());
    EXPECT_TRUE(open_checkpoint(scratch.path() / "link").complete());
}

TEST(Checkpoint, ReadsAHuggingFaceCache) {
    const ScratchFolder scratch;
    write_two_shards(scratch, "snapshots/0123/");
    const fs::path snapshot = scratch.path() / "snapshots/0123";
    fs::create_directory(scratch.path() / "blobs");
    for (const char* name : {"config.json", "a.safetensors", "b.safetensors", kIndex}) {
        fs::rename(snapshot / name, scratch.path() / "blobs" / name);
        fs::create_symlink(fs::path("../../blobs") / name, snapshot / name);
    }
    EXPECT_TRUE(open_checkpoint(snapshot).complete());
    fs::remove(scratch.path() / "blobs/b.safetensors");  // a download that was interrupted
    EXPECT_THAT(open_checkpoint(snapshot).missing,
                ElementsAre("no file b.safetensors, which holds 1 tensors"));
}

TEST(Checkpoint, RefusesLinkLoopsAndFolders) {
    const ScratchFolder scratch;
    write_two_shards(scratch);
    fs::remove(scratch.path() / "b.safetensors");
    fs::create_symlink("b.safetensors", scratch.path() / "b.safetensors");
    EXPECT_THAT(refused(scratch.path()), HasSubstr("cannot be resolved"));
    fs::remove(scratch.path() / "b.safetensors");
    fs::create_directory(scratch.path() / "b.safetensors");
    EXPECT_THAT(refused(scratch.path()), HasSubstr("a folder"));
}

TEST(Checkpoint, RefusesNamesLongerThanFilesCanHave) {
    const ScratchFolder scratch;
    write_two_shards(scratch);
    const std::string name = std::string(5000, 'x') + ".safetensors";
    scratch.write(kIndex, fmt::format(R"({{"weight_map": {{"a": "{}"}}}})", name));
    EXPECT_THAT(refused(scratch.path()), HasSubstr("cannot be resolved"));
}

TEST(TextFile, IsReadWholeUnderALimit) {
    const ScratchFolder scratch;
    const fs::path file = scratch.write("a.txt", "12345");
    EXPECT_EQ(read_text_file(file, 5), "12345");
    EXPECT_EQ(read_text_file(scratch.write("empty", "")), "");
    EXPECT_THAT(refusal([&] { read_text_file(file, 4); }),
                AllOf(HasSubstr("5 bytes"), HasSubstr("4")));
    EXPECT_THAT(refusal([&] { read_text_file(scratch.path()); }), HasSubstr("a folder"));
}

}  // namespace
}  // namespace tessera
