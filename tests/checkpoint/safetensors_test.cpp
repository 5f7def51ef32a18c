#include "checkpoint/safetensors.h"

#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/refusal.h"

#include "support/safetensors_writer.h"

namespace tessera {
namespace {

using test::refusal;
using test::safetensors;
using test::safetensors_file;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::map<std::string, TensorInfo> parse(std::string_view file) {
    return parse_safetensors(std::as_bytes(std::span(file)), file.size(), "file");
}

std::string refused(std::string_view file) {
    return refusal([&] { parse(file); });
}

// A file of one tensor "t" whose entry is `entry`, over `data_bytes` of data.
std::string one(std::string_view entry, size_t data_bytes = 8) {
    return safetensors_file(fmt::format(R"({{"t":{}}})", entry), std::string(data_bytes, 'x'));
}

std::string shaped(std::string_view shape) {
    return one(fmt::format(R"({{"dtype":"F32","data_offsets":[0,8],"shape":{}}})", shape));
}

std::string placed(std::string_view offsets) {
    return one(fmt::format(R"({{"dtype":"F32","shape":[2],"data_offsets":{}}})", offsets));
}

TEST(Safetensors, EveryDtypeAndShape) {
    const std::string file = safetensors({{"scalar", Dtype::f32, {}, std::string(4, 'a')},
                                          {"matrix", Dtype::bf16, {2, 3}, std::string(12, 'b')},
                                          {"empty", Dtype::i64, {3, 0}, ""},
                                          {"bytes", Dtype::u8, {5}, std::string(5, 'c')},
                                          {"e4m3", Dtype::e4m3, {1, 1, 1, 1, 1, 1, 1, 1}, "d"},
                                          {"half", Dtype::f16, {1}, "ee"},
                                          {"int", Dtype::i32, {1}, "ffff"}});
    const auto tensors = parse(file);
    ASSERT_EQ(tensors.size(), 7u);
    const TensorInfo& matrix = tensors.at("matrix");
    EXPECT_EQ(matrix.dtype, Dtype::bf16);
    EXPECT_THAT(matrix.shape, ElementsAre(2, 3));
    EXPECT_EQ(file.substr(matrix.begin, matrix.end - matrix.begin), std::string(12, 'b'));
    EXPECT_THAT(tensors.at("scalar").shape, ElementsAre());
    EXPECT_EQ(tensors.at("empty").begin, tensors.at("empty").end);
    EXPECT_EQ(tensors.at("int").end, file.size());
}

TEST(Safetensors, DtypesSpellTheirNamesAndSizes) {
    EXPECT_EQ(dtype_name(Dtype::e4m3), "F8_E4M3");
    EXPECT_EQ(dtype_name(Dtype::i64), "I64");
    EXPECT_EQ(dtype_bytes(Dtype::bf16), 2u);
    EXPECT_EQ(dtype_bytes(Dtype::u8), 1u);
}

TEST(Safetensors, NoTensorsAndMetadata) {
    EXPECT_TRUE(parse(safetensors({})).empty());
    EXPECT_TRUE(parse(safetensors_file(R"({"__metadata__":{"format":"pt"}}  )", "")).empty());
    EXPECT_THAT(refused(safetensors_file(R"({"__metadata__":{"format":1}})", "")),
                HasSubstr("__metadata__"));
    EXPECT_THAT(refused(safetensors_file(R"({"__metadata__":[]})", "")), HasSubstr("__metadata__"));
}

TEST(Safetensors, HeadAloneIsEnough) {
    const std::string file = safetensors({{"t", Dtype::u8, {1000}, std::string(1000, 'x')}});
    const std::string_view head = std::string_view(file).substr(0, file.size() - 1000);
    const auto tensors = parse_safetensors(std::as_bytes(std::span(head)), file.size(), "file");
    EXPECT_EQ(tensors.at("t").end, file.size());
}

TEST(Safetensors, RefusesEveryTruncation) {
    const std::string file = safetensors({{"t", Dtype::f32, {2}, "12345678"}});
    for (size_t size = 0; size < file.size(); ++size) {
        EXPECT_NE(refused(file.substr(0, size)), "accepted") << size;
    }
    EXPECT_EQ(refused(file), "accepted");
}

TEST(Safetensors, RefusesBytesAfterTheEnd) {
    const std::string file = safetensors({{"t", Dtype::f32, {2}, "12345678"}});
    EXPECT_THAT(refused(file + "9"), HasSubstr("no tensor owns"));
    EXPECT_THAT(refused(safetensors({}) + "9"), HasSubstr("no tensor owns"));
}

TEST(Safetensors, RefusesHeaderLongerThanFile) {
    EXPECT_THAT(refused(safetensors_file(3, "{}", "")),
                AllOf(HasSubstr("3 bytes"), HasSubstr("2")));
    EXPECT_THAT(refused(safetensors_file(uint64_t{1} << 30, "{}", "")),
                HasSubstr("at most 100000000"));
    EXPECT_THAT(refused(safetensors_file(~uint64_t{0}, "{}", "")), HasSubstr("at most 100000000"));
    EXPECT_THAT(refused(safetensors_file(~uint64_t{0} - 7, "{}", "")),
                HasSubstr("at most 100000000"));
}

TEST(Safetensors, RefusesHeadersThatAreNoObject) {
    for (const char* header : {"", " {}", "[]", "null", "{", "{}}", "{}{}", "{\"t\":}", "{},"}) {
        EXPECT_NE(refused(safetensors_file(header, "")), "accepted") << header;
    }
    EXPECT_THAT(refused(safetensors_file(std::string("{}\0{", 4), "")), HasSubstr("zero byte"));
}

TEST(Safetensors, RefusesBytesThatAreNoUtf8) {
    EXPECT_THAT(refused(safetensors_file("\xca{}", "")), HasSubstr("found \"\\xca\""));
    EXPECT_THAT(refused(safetensors_file("{\"\xca\":1}", "")), HasSubstr("not valid JSON"));
}

TEST(Safetensors, RefusesEntriesOfAnotherForm) {
    for (const char* entry : {"1", "null", "[]", "{}", R"({"dtype":"F32","shape":[2]})",
                              R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"strides":[1]})",
                              R"({"dtype":"F32","shape":[2],"offsets":[0,8]})"}) {
        EXPECT_THAT(refused(one(entry)),
                    AllOf(HasSubstr("file: tensor \"t\""), HasSubstr("exactly")))
            << entry;
    }
}

TEST(Safetensors, RefusesUnknownDtypesByName) {
    for (const char* dtype :
         {R"("F64")", R"("bf16")", R"("F4")", R"("")", "7", "null", "[\"F32\"]"}) {
        const std::string entry =
            fmt::format(R"({{"shape":[2],"data_offsets":[0,8],"dtype":{}}})", dtype);
        EXPECT_THAT(refused(one(entry)),
                    AllOf(HasSubstr("tensor \"t\""), HasSubstr("F8_E4M3"), HasSubstr(dtype)));
    }
}

TEST(Safetensors, RefusesWhatIsNoUnsignedInteger) {
    for (const char* number :
         {"-2", "-0", "2.0", "2.5", "2e0", "1e300", "18446744073709551616", "\"2\"", "true", "null",
          "[2]", "{}", "NaN", "Infinity", "-Infinity", "1e999", "0x2", "02", "+2"}) {
        const std::string list = fmt::format("[{}]", number);
        EXPECT_NE(refused(shaped(list)), "accepted") << number;
        EXPECT_NE(refused(placed(fmt::format("[{},8]", number))), "accepted") << number;
        EXPECT_NE(refused(placed(fmt::format("[0,{}]", number))), "accepted") << number;
    }
    EXPECT_THAT(refused(shaped("[-2]")), AllOf(HasSubstr("shape"), HasSubstr("-2")));
    EXPECT_THAT(refused(placed("[0,8.0]")), AllOf(HasSubstr("data_offsets"), HasSubstr("8.0")));
    EXPECT_EQ(refused(shaped("[2]")), "accepted");
}

TEST(Safetensors, RefusesShapesAndOffsetsOfAnotherForm) {
    for (const char* shape : {"2", "\"2\"", "{\"0\":2}", "null", "[1,1,1,1,1,1,1,1,2]"}) {
        EXPECT_THAT(refused(shaped(shape)), HasSubstr("shape")) << shape;
    }
    for (const char* offsets : {"8", "[]", "[8]", "[0,8,8]", "{\"0\":0,\"1\":8}", "null"}) {
        EXPECT_THAT(refused(placed(offsets)), HasSubstr("[begin, end]")) << offsets;
    }
}

TEST(Safetensors, RefusesCountTimesSizeOverflow) {
    // Each product is 8 modulo 2^64, or is hidden behind a zero.
    for (const char* shape :
         {"[4611686018427387906]", "[2147483648,2147483648,2]", "[18446744073709551615,2]",
          "[0,18446744073709551615,18446744073709551615]", "[4294967296,4294967296,0]"}) {
        EXPECT_THAT(refused(shaped(shape)), HasSubstr("2^64")) << shape;
    }
}

TEST(Safetensors, RefusesSizesThatDisagree) {
    EXPECT_THAT(refused(shaped("[3]")), AllOf(HasSubstr("is 12 bytes"), HasSubstr("hold 8")));
    EXPECT_THAT(refused(shaped("[0]")), HasSubstr("is 0 bytes"));
    EXPECT_THAT(refused(shaped("[]")), HasSubstr("is 4 bytes"));
}

TEST(Safetensors, RefusesOffsetsOutsideTheFile) {
    for (const char* offsets : {"[8,0]", "[0,9]", "[1,9]", "[8,16]", "[18446744073709551608,0]",
                                "[18446744073709551608,18446744073709551615]"}) {
        EXPECT_THAT(refused(placed(offsets)), HasSubstr("do not lie in the file's 8 bytes"))
            << offsets;
    }
}

TEST(Safetensors, RefusesOverlaps) {
    const auto two = [](std::string_view a, std::string_view b) {
        return safetensors_file(
            fmt::format(R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":{}}},)"
                        R"("b":{{"dtype":"U8","shape":[4],"data_offsets":{}}}}})",
                        a, b),
            "12345678");
    };
    EXPECT_EQ(refused(two("[0,4]", "[4,8]")), "accepted");
    EXPECT_EQ(refused(two("[4,8]", "[0,4]")), "accepted");
    EXPECT_THAT(refused(two("[0,4]", "[0,4]")),
                AllOf(HasSubstr("\"b\""), HasSubstr("inside tensor \"a\"")));
    EXPECT_THAT(refused(two("[3,7]", "[0,4]")),
                AllOf(HasSubstr("\"a\""), HasSubstr("inside tensor \"b\"")));
}

TEST(Safetensors, RefusesHoles) {
    const std::string gap = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                            R"("b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})";
    EXPECT_THAT(refused(safetensors_file(gap, "12345")), HasSubstr("no tensor owns"));
    EXPECT_THAT(refused(safetensors_file(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                                         "123")),
                HasSubstr("no tensor owns"));
    EXPECT_THAT(
        refused(safetensors_file(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}})", "1")),
        HasSubstr("no tensor owns"));
}

TEST(Safetensors, RefusesDuplicateNames) {
    const std::string entry = R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
    EXPECT_THAT(refused(safetensors_file(fmt::format("{{{},{}}}", entry, entry), "")),
                HasSubstr("twice"));
    EXPECT_THAT(refused(one(R"({"dtype":"U8","dtype":"F32","shape":[2],"data_offsets":[0,8]})")),
                HasSubstr("twice"));
}

TEST(Safetensors, RefusesDepthBombs) {
    const std::string deep = std::string(1000000, '[') + std::string(1000000, ']');
    EXPECT_THAT(refused(one(deep)), HasSubstr("deeper"));
    EXPECT_THAT(refused(shaped("[[2]]")), HasSubstr("deeper"));
}

TEST(Safetensors, MessagesStayShortAndOnOneLine) {
    const std::string name = "x\\n\\u001b[31m" + std::string(100000, 'y');
    const std::string message = refused(safetensors_file(fmt::format(R"({{"{}":1}})", name), ""));
    EXPECT_LT(message.size(), 400u);
    EXPECT_EQ(message.find_first_of("\n\x1b"), message.npos) << message;
    EXPECT_LT(refused(one(fmt::format("\"{}\"", std::string(99999, '1')))).size(), 600u);
}

}  // namespace
}  // namespace tessera
