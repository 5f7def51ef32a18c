// The table of schemas (make_schemas.py, checked there with another validator): what fits is
// written, what does not is not, and what is not understood is refused by its name.
#include <gtest/gtest.h>

#include "grammar/support.h"

namespace tessera::grammar {
namespace {

TEST(Schemas, WhatFitsIsWrittenAndWhatDoesNotIsNot) {
    const Schema table = test::table();
    ASSERT_GE(table["understood"].size(), 60u);
    for (const Schema& row : table["understood"]) {
        SCOPED_TRACE(row["name"].dump());
        std::shared_ptr<const Program> program;
        ASSERT_NO_THROW(program = test::program_of(row["schema"]));
        const auto masks = std::make_shared<LocalMasks>(program, test::bytes_alone());
        for (const Schema& text : row["fits"])
            EXPECT_TRUE(test::writes(masks, text.get<std::string>())) << text;
        for (const Schema& text : row["misfits"])
            EXPECT_FALSE(test::writes(masks, text.get<std::string>())) << text;
    }
}

TEST(Schemas, WhatIsNotUnderstoodIsRefusedByName) {
    const Schema table = test::table();
    ASSERT_GE(table["refused"].size(), 30u);
    for (const Schema& row : table["refused"]) {
        const OrRefusal made = json_schema(row["schema"]);
        const auto* refusal = std::get_if<Refusal>(&made);
        ASSERT_NE(refusal, nullptr) << row["name"];
        EXPECT_NE(refusal->message.find(row["names"].get<std::string>()), std::string::npos)
            << row["name"] << ": " << refusal->message;
    }
}

TEST(Schemas, AnyObject) {
    const auto masks =
        std::make_shared<LocalMasks>(test::program_of({{"type", "object"}}), test::bytes_alone());
    for (const char* text : {"{}", R"({"a": [1, {"b": null}], "c": "\u00e9\n"})"})
        EXPECT_TRUE(test::writes(masks, text)) << text;
    for (const char* text : {"", "[]", "1", "{\"a\"}", "{}{}", "{\"a\": 1,}", "{\"\xff\": 1}"})
        EXPECT_FALSE(test::writes(masks, text)) << text;
    std::string deep;
    for (int i = 0; i < 20; ++i) deep += "{\"a\": ";
    EXPECT_TRUE(test::writes(masks, deep + "1" + std::string(20, '}')));
    for (int i = 0; i < 20; ++i) deep += "{\"a\": ";
    EXPECT_FALSE(test::writes(masks, deep + "1" + std::string(40, '}')));
}

// Bytes of strings: every character of Unicode as UTF-8, and nothing else.
TEST(Schemas, StringsAreUtf8) {
    const auto masks =
        std::make_shared<LocalMasks>(test::program_of({{"type", "string"}}), test::bytes_alone());
    const auto quoted = [&](std::string_view inside) {
        return test::writes(masks, "\"" + std::string(inside) + "\"");
    };
    for (const char* fits : {"\u00e9", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff",
                             "\U00010000", "\U0010ffff", "\x7f"})
        EXPECT_TRUE(quoted(fits)) << fits;
    for (const char* misfit :
         {"\x80", "\xc0\x80", "\xc1\xbf", "\xc3", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xed\xa0\x80",
          "\xed\xbf\xbf", "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff",
          "\x1f", "\\ud800", "\\uDFFF", "\\u12g4"})
        EXPECT_FALSE(quoted(misfit)) << misfit;
    EXPECT_TRUE(quoted("\\ud7ff\\uE000\\u0000"));
}

}  // namespace
}  // namespace tessera::grammar
