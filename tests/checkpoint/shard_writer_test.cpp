// A shard is written whole, read back, and only then has its name.
#include "checkpoint/shard_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/mapped_file.h"
#include "checkpoint/refusal.h"
#include "checkpoint/scratch_folder.h"

namespace tessera {
namespace {

using test::refusal;
using testing::HasSubstr;

TEST(ShardWriter, WhatItWritesIsReadAsItWas) {
    const test::ScratchFolder scratch;
    const auto file = scratch.path() / "model.safetensors";
    const std::vector<ShardTensor> tensors = {
        {"b", Dtype::u8, {3, 2}}, {"a", Dtype::f32, {2}}, {"none", Dtype::bf16, {0, 4}}};
    std::vector<std::byte> data(14);
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 17);
    ShardWriter writer(file, tensors);
    writer.write(std::span(data).first(4));  // pieces need not be tensors
    writer.write(std::span(data).subspan(4));
    EXPECT_FALSE(exists(file));
    const uint64_t bytes = writer.finish();
    const MappedFile back(file);
    ASSERT_EQ(back.bytes().size(), bytes);
    const auto found = parse_safetensors(back.bytes(), bytes, "shard");
    ASSERT_EQ(found.size(), 3u);
    EXPECT_EQ(found.at("b").begin % 8, 0u);
    EXPECT_EQ(found.at("b").shape, (std::vector<uint64_t>{3, 2}));
    EXPECT_EQ(found.at("a").begin, found.at("b").begin + 6);
    EXPECT_TRUE(std::ranges::equal(back.bytes().subspan(found.at("b").begin), data));
    EXPECT_FALSE(exists(scratch.path() / "model.safetensors.tmp"));
}

TEST(ShardWriter, AnUnfinishedShardIsNotThere) {
    const test::ScratchFolder scratch;
    const auto file = scratch.path() / "model.safetensors";
    const std::vector<ShardTensor> tensors = {{"a", Dtype::u8, {4}}};
    { const ShardWriter writer(file, tensors); }
    EXPECT_TRUE(is_empty(scratch.path()));
}

TEST(ShardWriter, AFolderThatIsNotThereIsNamed) {
    EXPECT_THAT(refusal([] { ShardWriter("/nowhere/x.safetensors", {}); }),
                HasSubstr("/nowhere/x.safetensors.tmp: cannot be written"));
    EXPECT_THAT(refusal([] { write_whole("/nowhere/x", "text"); }), HasSubstr("/nowhere/x"));
}

// What comes back changed is not given its name: the file is changed behind the writer's back.
TEST(ShardWriter, AChangedByteIsFound) {
    const test::ScratchFolder scratch;
    const auto file = scratch.path() / "model.safetensors";
    const std::vector<ShardTensor> tensors = {{"a", Dtype::u8, {1000}}};
    for (const long at : {-1L, -500L, -1000L}) {
        ShardWriter writer(file, tensors);
        writer.write(std::vector<std::byte>(1000));
        std::FILE* const other = std::fopen((file.string() + ".tmp").c_str(), "r+b");
        ASSERT_NE(other, nullptr);
        std::fseek(other, at, SEEK_END);
        std::fputc(1, other);
        std::fclose(other);
        EXPECT_THAT(refusal([&] { writer.finish(); }), HasSubstr("came back changed"));
        EXPECT_FALSE(exists(file));
    }
}

}  // namespace
}  // namespace tessera
