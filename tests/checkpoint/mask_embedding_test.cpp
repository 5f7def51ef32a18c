#include "checkpoint/mask_embedding.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/refusal.h"
#include "checkpoint/torch_file.h"

namespace tessera {
namespace {

using test::bytes_of;
using test::global;
using test::integer;
using test::program;
using test::text;
using test::torch_file;
using test::TorchFile;
using test::tuple;
using test::zip;
using test::ZipEntry;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

MaskEmbedding parse(std::string_view file) {
    return parse_mask_embedding(std::as_bytes(std::span(file)), "file");
}

std::string refused(std::string_view file) {
    return test::refusal([&] { parse(file); });
}

std::string vector_file(std::string_view name) {
    return read_text_file(std::filesystem::path(TESSERA_VECTORS) / "mask_embedding" / name);
}

std::vector<float> floats(const MaskEmbedding& mask) {
    std::vector<float> values;
    for (const bf16 value : mask.embedding) values.push_back(to_float(value));
    return values;
}

// ------------------------------------------------------------------ what torch writes

TEST(MaskEmbedding, ReadsWhatTorchWrites) {
    std::vector<float> expected;
    for (int i = 0; i < 8; ++i) expected.push_back(round_bf16(static_cast<float>(i - 3) / 7.0f));
    const struct {
        const char* name;
        int64_t token;
    } cases[] = {{"bf16.pt", 151643},
                 {"f32.pt", 7},
                 {"bf16_offset.pt", 3'000'000'000},
                 {"f32_offset.pt", 300}};
    for (const auto& [name, token] : cases) {
        const MaskEmbedding mask = parse(vector_file(name));
        EXPECT_EQ(mask.mask_token_id, token) << name;
        EXPECT_EQ(floats(mask), expected) << name;
    }
}

TEST(MaskEmbedding, RefusesWhatTorchWritesOtherwise) {
    EXPECT_THAT(refused(vector_file("f16.pt")), HasSubstr("torch HalfStorage"));
    EXPECT_THAT(refused(vector_file("stride.pt")), HasSubstr("expected stride 1, found 2"));
    EXPECT_THAT(refused(vector_file("matrix.pt")), HasSubstr("expected 1 values, found 2"));
    EXPECT_THAT(refused(vector_file("parameter.pt")), HasSubstr("_rebuild_parameter"));
    EXPECT_THAT(refused(vector_file("legacy.pt")), HasSubstr("expected a zip archive"));
}

TEST(MaskEmbedding, RefusesEveryTruncation) {
    const std::string file = vector_file("bf16.pt");
    for (size_t size = 0; size < file.size(); ++size) {
        EXPECT_NE(refused(file.substr(0, size)), "accepted") << size;
    }
}

TEST(MaskEmbedding, ReadsTheTestsOwnFiles) {
    const MaskEmbedding mask = parse(TorchFile().bytes());
    EXPECT_EQ(mask.mask_token_id, 5);
    EXPECT_THAT(floats(mask), ElementsAre(1, 2, 3, 4));
    const TorchFile part{.offset = integer(1), .size = tuple(integer(2))};
    EXPECT_THAT(floats(parse(part.bytes())), ElementsAre(2, 3));
}

TEST(MaskEmbedding, RoundsFloatsToNearestEven) {
    const TorchFile file{.storage_type = global("torch", "FloatStorage"),
                         .data = bytes_of(0x3f808000, 4) + bytes_of(0x3f818000, 4) +
                                 bytes_of(0x3f808001, 4) + bytes_of(0xff800000, 4)};
    const MaskEmbedding mask = parse(file.bytes());
    EXPECT_EQ(mask.embedding[0].bits, 0x3f80);
    EXPECT_EQ(mask.embedding[1].bits, 0x3f82);
    EXPECT_EQ(mask.embedding[2].bits, 0x3f81);
    EXPECT_EQ(mask.embedding[3].bits, 0xff80);
}

// ------------------------------------------------------------------ hostile pickles

TEST(MaskEmbedding, RefusesCallsByName) {
    const auto call = [](std::string_view module, std::string_view name) {
        return refused(torch_file(program(global(module, name) + tuple(text("id")) + "R")));
    };
    EXPECT_THAT(call("os", "system"), AllOf(HasSubstr("\"os system\""), HasSubstr("not one of")));
    EXPECT_THAT(call("posix", "system"), HasSubstr("\"posix system\""));
    EXPECT_THAT(call("builtins", "eval"), HasSubstr("\"builtins eval\""));
    EXPECT_THAT(call("torch", "load"), HasSubstr("\"torch load\""));
    EXPECT_THAT(call("torch BFloat16Storage", ""), HasSubstr("not one of"));
    EXPECT_THAT(call("torch", "FloatStorage"), HasSubstr("a call of name \"torch FloatStorage\""));
    EXPECT_THAT(call("o\x1bs", "sys\ttem"), HasSubstr("\"o\\x1bs sys\\x09tem\""));
    EXPECT_THAT(call("\xff\xee", "\xc3"), HasSubstr("\"\\xff\\xee \\xc3\""));
    const std::string hidden =
        TorchFile{.hooks = global("os", "system") + tuple(text("id")) + "R"}.bytes();
    EXPECT_THAT(refused(hidden), HasSubstr("\"os system\""));
}

TEST(MaskEmbedding, RefusesOtherOpcodes) {
    const struct {
        const char* what;
        std::string pickle;
    } cases[] = {
        {"0x69", program("(ios\nsystem\n")},                      // INST
        {"0x6f", program("(" + text("a") + "o")},                 // OBJ
        {"0x62", program("}" + text("a") + "b")},                 // BUILD
        {"0x81", program(text("a") + ")\x81")},                   // NEWOBJ
        {"0x93", program(text("os") + text("system") + "\x93")},  // STACK_GLOBAL
        {"0x82", program("\x82\x01")},                            // EXT1
        {"0x47", program("G" + bytes_of(0, 8))},                  // BINFLOAT
        {"0x4e", program("N")},                                   // NONE
        {"0x5d", program("]")},                                   // EMPTY_LIST
        {"0x30", program("0")},                                   // POP
        {"0x8b", program("\x8b" + bytes_of(1u << 31, 4))},        // LONG4
        {"0x95", program("\x95" + bytes_of(~0u, 8))},             // FRAME
        {"0x00", program(std::string(1, '\0'))},
    };
    for (const auto& [what, pickle] : cases) {
        EXPECT_THAT(refused(torch_file(pickle)), AllOf(HasSubstr("opcode"), HasSubstr(what)))
            << what;
    }
}

TEST(MaskEmbedding, RefusesOtherProtocolsAndEnds) {
    const struct {
        const char* what;
        std::string pickle;
    } cases[] = {
        {"cut off", ""},
        {"protocol 2", "\x80\x04."},
        {"protocol 2", "}."},
        {"cut off", "\x80\x02}"},
        {"one value", program("")},
        {"one value", program("))")},
        {"one value", program("(")},
        {"one value", program(")(")},
        {"follow the end", program(")") + "x"},
        {"expected dict, found tuple", program(")")},
        {"expected dict, found text", program(text("a"))},
        {"mask_token_id is missing", program("}")},
        {"cut off", "\x80\x02X" + bytes_of(~0u, 4)},
        {"cut off",
         "\x80\x02"
         "cos"},
        {"cut off",
         "\x80\x02"
         "cos\nsystem"},
        {"cut off", "\x80\x02J"},
        {"cut off", "\x80\x02\x8a\xff"},
    };
    for (const auto& [what, pickle] : cases) {
        EXPECT_THAT(refused(torch_file(pickle)), HasSubstr(what)) << what;
    }
}

TEST(MaskEmbedding, RefusesBadStacksAndMemos) {
    const struct {
        const char* what;
        std::string pickle;
    } cases[] = {
        {"nothing left", program("\x85")},
        {"nothing left", program(")\x86")},
        {"nothing left", program("R")},
        {"nothing left", program("Q")},
        {"nothing left", program("s")},
        {"nothing left", program(std::string("q\0", 2))},
        {"nothing left", program(")(\x85")},  // would reach under the mark
        {"no mark", program("t")},
        {"no mark", program(")u")},
        {"values set as items of a tuple", program(")(" + text("a") + text("b") + "u")},
        {"1 values set as items of a dict", program("}(" + text("a") + "u")},
        {"slot 7 is empty", program("h\x07")},
        {"slot 4294967295 is empty", program("j" + bytes_of(~0u, 4))},
        {"memo slot 4294967295", program(")r" + bytes_of(~0u, 4))},
        {"memo slot 1024", program(")r" + bytes_of(1024, 4))},
        {"256 values", program(std::string(100000 / 2, ')'))},
        {"256 marks", program(std::string(50000, '('))},
        {"70003 bytes", program(std::string(70000, ')'))},
        {"a call of text", program(text("a") + ")R")},
        {"not a tuple", program(global("collections", "OrderedDict") + "}R")},
    };
    for (const auto& [what, pickle] : cases) {
        EXPECT_THAT(refused(torch_file(pickle)), HasSubstr(what)) << what;
    }
}

TEST(MaskEmbedding, RefusesTuplesThatGrowWithoutBound) {
    // Each line doubles the one before; a reader that copies would need 2^1000 values.
    std::string body = ")";
    for (int i = 0; i < 1000; ++i) body += std::string("q\0h\0\x86", 5);
    EXPECT_THAT(refused(torch_file(program(body))), HasSubstr("expected dict, found tuple"));
    // A dict that holds itself.
    const std::string self =
        program(std::string("}q\0(", 4) + text("embedding") + std::string("h\0", 2) +
                text("mask_token_id") + integer(1) + "u");
    EXPECT_THAT(refused(torch_file(self)), HasSubstr("expected call, found dict"));
}

// ------------------------------------------------------------------ wrong values

TEST(MaskEmbedding, RefusesOtherKeys) {
    EXPECT_THAT(refused(TorchFile{.more_items = text("extra") + integer(1)}.bytes()),
                HasSubstr("found \"extra\""));
    EXPECT_THAT(refused(TorchFile{.more_items = text("mask_token_id") + integer(1)}.bytes()),
                HasSubstr("mask_token_id appears twice"));
    EXPECT_THAT(refused(TorchFile{.more_items = text("embedding") + integer(1)}.bytes()),
                HasSubstr("embedding appears twice"));
    EXPECT_THAT(refused(TorchFile{.more_items = integer(1) + integer(1)}.bytes()),
                HasSubstr("expected text, found integer"));
    EXPECT_THAT(refused(torch_file(program("}" + text("mask_token_id") + integer(1) + "s"))),
                HasSubstr("embedding is missing"));
}

TEST(MaskEmbedding, RefusesNumbersThatAreNone) {
    const std::string minus_one = integer(~uint64_t{0});
    const std::string least = integer(uint64_t{1} << 63);
    const std::string nine_bytes = std::string("\x8a\x09").append(bytes_of(0, 8)).append("\x01");
    for (const std::string& bad : {minus_one, least, nine_bytes, text("4"), std::string("\x88"),
                                   std::string(")"), "G" + bytes_of(0x7ff8, 8)}) {
        EXPECT_NE(refused(TorchFile{.token = bad}.bytes()), "accepted");
        EXPECT_NE(refused(TorchFile{.held = bad}.bytes()), "accepted");
        EXPECT_NE(refused(TorchFile{.offset = bad}.bytes()), "accepted");
        EXPECT_NE(refused(TorchFile{.size = tuple(bad)}.bytes()), "accepted");
        EXPECT_NE(refused(TorchFile{.stride = tuple(bad)}.bytes()), "accepted");
    }
    EXPECT_THAT(refused(TorchFile{.token = "J" + bytes_of(~0u, 4)}.bytes()), HasSubstr("found -1"));
    EXPECT_THAT(refused(TorchFile{.token = nine_bytes}.bytes()), HasSubstr("9 bytes"));
    EXPECT_EQ(parse(TorchFile{.token = std::string("\x8a\0", 2)}.bytes()).mask_token_id, 0);
    EXPECT_EQ(parse(TorchFile{.token = "\x8a\x02\xff\x7f"}.bytes()).mask_token_id, 0x7fff);
    EXPECT_EQ(parse(TorchFile{.token = "M\xff\xff"}.bytes()).mask_token_id, 0xffff);
}

TEST(MaskEmbedding, RefusesRangesOutsideTheStorage) {
    const std::string huge = integer(uint64_t{1} << 62);
    const std::string most = integer(~uint64_t{0} >> 1);
    const TorchFile cases[] = {
        {.offset = integer(1)},
        {.offset = integer(5), .size = tuple(integer(0))},
        {.offset = most},
        {.offset = most, .size = tuple(most)},
        {.size = tuple(integer(5))},
        {.size = tuple(huge)},
        {.size = tuple(integer(0))},
        {.held = integer(5)},
        {.held = integer(3)},
        {.held = huge},
        {.data = "1234567"},
        {.data = ""},
        {.storage_type = global("torch", "FloatStorage")},
    };
    for (const TorchFile& file : cases) EXPECT_THAT(refused(file.bytes()), HasSubstr("embedding:"));
}

TEST(MaskEmbedding, RefusesTensorsOfAnotherForm) {
    const struct {
        const char* what;
        TorchFile file;
    } cases[] = {
        {"expected stride 1, found 0", {.stride = tuple(integer(0))}},
        {"expected stride 1, found 2", {.stride = tuple(integer(2))}},
        {"stride: expected 1 values, found 0", {.stride = ")"}},
        {"size: expected 1 values, found 0", {.size = ")"}},
        {"size: expected 1 values, found 2", {.size = tuple(integer(2) + integer(2))}},
        {"size: expected tuple, found integer", {.size = integer(4)}},
        {"requires_grad: expected boolean", {.requires_grad = integer(0)}},
        {"expected 6 values, found 7", {.requires_grad = "\x89\x89"}},
        {"hooks: expected call", {.hooks = "}"}},
        {"an empty OrderedDict",
         {.hooks = global("collections", "OrderedDict") + tuple(")") + "R"}},
        {"expected a tensor, found collections", {.rebuild = global("collections", "OrderedDict")}},
        {"no entry data/\"1\"", {.key = text("1")}},
        {"no entry data/\"../0\"", {.key = text("../0")}},
        {"storage: expected text", {.key = integer(0)}},
        {"storage: expected name", {.storage_type = text("torch BFloat16Storage")}},
        {"found \"storage\" of collections",
         {.storage_type = global("collections", "OrderedDict")}},
    };
    for (const auto& [what, file] : cases)
        EXPECT_THAT(refused(file.bytes()), HasSubstr(what)) << what;
}

// ------------------------------------------------------------------ hostile archives

TEST(MaskEmbedding, RefusesEntriesThatAreNotStored) {
    std::vector<ZipEntry> entries = TorchFile().entries();
    entries[2].method = 8;
    EXPECT_THAT(refused(zip(entries).bytes), AllOf(HasSubstr("any/data/0"), HasSubstr("method 8")));
    entries[2].method = 0;
    entries[2].flags = 1;
    EXPECT_THAT(refused(zip(entries).bytes), HasSubstr("encrypted"));
}

TEST(MaskEmbedding, RefusesEntriesOutsideTheArchive) {
    const auto changed = [](uint32_t claimed_bytes, uint32_t local) {
        std::vector<ZipEntry> entries = TorchFile().entries();
        entries[2].claimed_bytes = claimed_bytes;
        entries[2].local = local;
        return refused(zip(entries).bytes);
    };
    const uint32_t truth = UINT32_MAX - 1;
    EXPECT_EQ(changed(truth, truth), "accepted");
    EXPECT_THAT(changed(9, truth), HasSubstr("outside"));
    EXPECT_THAT(changed(UINT32_MAX - 2, truth), HasSubstr("outside"));
    EXPECT_THAT(changed(truth, UINT32_MAX - 2), HasSubstr("outside"));
    EXPECT_THAT(changed(truth, 1), HasSubstr("no header"));
    EXPECT_THAT(changed(truth, 0), HasSubstr("another name"));
    EXPECT_THAT(changed(UINT32_MAX, truth), HasSubstr("zip64"));
    EXPECT_THAT(changed(truth, UINT32_MAX), HasSubstr("zip64"));
}

TEST(MaskEmbedding, RefusesNamesThatAreAmbiguous) {
    std::vector<ZipEntry> entries = TorchFile().entries();
    entries.push_back(entries[2]);
    EXPECT_THAT(refused(zip(entries).bytes), HasSubstr("twice"));
    entries.back().name = "other/data.pkl";
    EXPECT_THAT(refused(zip(entries).bytes), HasSubstr("two pickles"));
    entries.back() = {.name = "any/x", .bytes = "", .local_name = "any/y"};
    EXPECT_THAT(refused(zip(entries).bytes), HasSubstr("another name"));
    EXPECT_THAT(refused(zip({}).bytes), HasSubstr("without a data.pkl"));
    EXPECT_THAT(refused(zip({{.name = "data.pkl", .bytes = TorchFile().pickle()}}).bytes),
                HasSubstr("without a data.pkl"));
}

TEST(MaskEmbedding, ByteOrderIsLittleOrUnsaid) {
    std::vector<ZipEntry> entries = TorchFile().entries();
    entries[1].bytes = "big";
    EXPECT_THAT(refused(zip(entries).bytes), AllOf(HasSubstr("byteorder"), HasSubstr("\"big\"")));
    entries.erase(entries.begin() + 1);
    EXPECT_EQ(refused(zip(entries).bytes), "accepted");
}

TEST(MaskEmbedding, RefusesDirectoriesThatLie) {
    const test::Zip whole = zip(TorchFile().entries());
    const auto changed = [&](size_t at, const std::string& bytes) {
        std::string file = whole.bytes;
        return refused(file.replace(whole.end_record + at, bytes.size(), bytes));
    };
    EXPECT_THAT(changed(0, "PK"), "accepted");
    EXPECT_THAT(changed(0, "ZZ"), HasSubstr("expected a zip archive"));
    EXPECT_THAT(changed(4, "\1"), HasSubstr("several disks"));
    EXPECT_THAT(changed(8, bytes_of(2, 2)), HasSubstr("several disks"));
    EXPECT_THAT(changed(8, bytes_of(2, 2) + bytes_of(2, 2)), HasSubstr("after its last entry"));
    EXPECT_THAT(changed(8, bytes_of(4, 2) + bytes_of(4, 2)), HasSubstr("fewer entries"));
    EXPECT_THAT(changed(8, bytes_of(0xffff, 2) + bytes_of(0xffff, 2)), HasSubstr("zip64"));
    EXPECT_THAT(changed(12, bytes_of(~0u, 4)), HasSubstr("zip64"));
    EXPECT_THAT(changed(16, bytes_of(~0u, 4)), HasSubstr("zip64"));
    EXPECT_THAT(changed(12, bytes_of(~0u - 1, 4)), HasSubstr("end record is at"));
    EXPECT_THAT(changed(16, bytes_of(~0u - 1, 4)), HasSubstr("end record is at"));
    EXPECT_THAT(changed(16, bytes_of(whole.directory - 1, 4)), HasSubstr("1 unknown bytes"));
    EXPECT_THAT(changed(20, "\1"), HasSubstr("comment"));
    EXPECT_THAT(refused(whole.bytes + "x"), HasSubstr("expected a zip archive"));
}

TEST(MaskEmbedding, Zip64RecordMustAgree) {
    const std::string file = vector_file("bf16.pt");
    const size_t record = file.rfind("PK\6\6");
    ASSERT_NE(record, file.npos);
    for (const size_t field : {32u, 40u, 48u}) {
        std::string other = file;
        ++other[record + field];
        EXPECT_THAT(refused(other), HasSubstr("disagree")) << field;
    }
}

}  // namespace
}  // namespace tessera
