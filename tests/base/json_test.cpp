#include "base/json.h"

#include <string>

#include <gtest/gtest.h>

#include "base/error.h"

namespace tessera {
namespace {

TEST(Json, TrailingCommasOnlyWhereAllowed) {
    const std::string text = R"({"a": [1, 2, ], "b": ",}",})";
    EXPECT_THROW(parse_json(text, "t"), Error);
    const Json value = parse_json(text, "t", {.trailing_commas = true});
    EXPECT_EQ(value["a"].size(), 2u);
    EXPECT_EQ(value["b"], ",}");
}

TEST(Json, RefusesWhatHurts) {
    EXPECT_THROW(parse_json(std::string(100000, '['), "t"), Error);
    EXPECT_THROW(parse_json("{\"a\": 1, \"a\": 2}", "t"), Error);
    EXPECT_THROW(parse_json("[1, 2", "t"), Error);
    EXPECT_THROW(parse_json("\"\xff\"", "t"), Error);
    EXPECT_THROW(parse_json("[1]", "t", {.bytes_max = 2}), Error);
    EXPECT_NO_THROW(parse_json(R"({"a": {"a": 1}, "b": {"a": 2}})", "t"));
}

}  // namespace
}  // namespace tessera
