// JSON lines of texts and tasks: what is read, what is refused, and what counts as right.
#include "judge/suite.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/refusal.h"

namespace tessera {
namespace {

using test::refusal;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(JudgedSuite, ReadsTexts) {
    const JudgedSuite suite = parse_judged_suite(
        "{\"prompt\": \"one\", \"source\": {\"path\": \"x\"}}\n\n  \r\n{\"text\": \"two\\n\"}", "s",
        "f");
    ASSERT_EQ(suite.texts.size(), 2u);
    EXPECT_EQ(suite.texts[0].text, "one");
    EXPECT_EQ(suite.texts[1].text, "two\n");
    EXPECT_EQ(suite.texts[1].name, "s:4");
    EXPECT_TRUE(suite.tasks.empty());
}

TEST(JudgedSuite, ReadsTasks) {
    const JudgedSuite suite = parse_judged_suite(
        R"({"prompt": "2+2=", "expected": "4", "stop": "\n"}
{"prompt": "a", "expected": "b", "stop": ["x", "yy"]}
{"prompt": "a", "expected": "b", "stop": null})",
        "s", "f");
    ASSERT_EQ(suite.tasks.size(), 3u);
    EXPECT_THAT(suite.tasks[0].stops, ElementsAre("\n"));
    EXPECT_THAT(suite.tasks[1].stops, ElementsAre("x", "yy"));
    EXPECT_TRUE(suite.tasks[2].stops.empty());
}

TEST(JudgedSuite, RefusesByLine) {
    struct Row {
        const char *lines, *words;
    };
    for (const Row& row :
         {Row{"", "f: holds nothing to judge by"}, Row{"\n\n", "holds nothing"},
          Row{"{\"text\": \"a\"}\nnot json", "f:2: not valid JSON"},
          Row{"[1]", "f:1: expected {\"text\": …}"}, Row{"{\"note\": 1}", "f:1: expected"},
          Row{"{\"text\": 1}", "f:1: \"text\" must be a text"},
          Row{"{\"text\": \"\"}", "f:1: \"text\" must be a text that is not empty"},
          Row{"{\"prompt\": \"a\", \"expected\": \"\"}", "\"expected\" must be"},
          Row{"{\"prompt\": \"a\", \"expected\": \"b\", \"stop\": 3}", "\"stop\" must be"},
          Row{"{\"prompt\": \"a\", \"expected\": \"b\", \"stop\": [\"\"]}", "\"stop\" must be"},
          Row{"{\"text\": \"a\"}\n{\"prompt\": \"a\", \"expected\": \"b\"}",
              "f:2: a file holds texts or"},
          Row{"{\"text\": \"a\", \"text\": \"b\"}", "appears twice"}}) {
        EXPECT_THAT(refusal([&] { parse_judged_suite(row.lines, "s", "f"); }), HasSubstr(row.words))
            << row.lines;
    }
    const std::string deep = "{\"text\": \"a\", \"n\": " + std::string(40, '[') + "}";
    EXPECT_THAT(refusal([&] { parse_judged_suite(deep, "s", "f"); }), HasSubstr("nests deeper"));
}

TEST(JudgedTask, IsRightToTheLetter) {
    const JudgedTask open{"", "", "42", {}}, closed{"", "", "42", {"\n"}};
    EXPECT_TRUE(is_right(open, "42"));
    EXPECT_TRUE(is_right(open, "42 and more"));
    EXPECT_FALSE(is_right(open, " 42"));
    EXPECT_FALSE(is_right(open, "4"));
    EXPECT_TRUE(is_right(closed, "42"));
    EXPECT_FALSE(is_right(closed, "42 "));
}

}  // namespace
}  // namespace tessera
