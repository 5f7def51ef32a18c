// Masks against the plainest twin there is: a token fits if its bytes do, one after the other.
#include "grammar/matcher.h"

#include <random>

#include <gtest/gtest.h>

#include "grammar/support.h"

namespace tessera::grammar {
namespace {

// Which tokens fit behind what `plain` has read, byte by byte.
Bits by_bytes(Matcher& plain, const Vocabulary& vocabulary, uint32_t end) {
    Bits bits(vocabulary.words());
    if (plain.may_end()) set_bit(bits, end);
    for (uint32_t token = 0; token < vocabulary.size(); ++token) {
        const std::string_view bytes = vocabulary.bytes(token);
        Matcher copy = plain;
        bool fits = !bytes.empty();
        for (size_t i = 0; fits && i < bytes.size(); ++i) {
            fits = copy.allows(static_cast<uint8_t>(bytes[i]));
            if (fits) copy.push(static_cast<uint8_t>(bytes[i]));
        }
        if (fits) set_bit(bits, token);
    }
    return bits;
}

TEST(Matcher, MasksAreWhatTheBytesSay) {
    const test::Pieces pieces(400);
    const auto bytes = test::bytes_alone();
    const Vocabulary& vocabulary = *pieces.vocabulary();
    std::mt19937 random(7);
    size_t compared = 0, refused = 0;
    const Schema table = test::table();
    for (const Schema& row : table["understood"]) {
        SCOPED_TRACE(row["name"].dump());
        const auto program = test::program_of(row["schema"]);
        const auto masks = std::make_shared<LocalMasks>(program, pieces.vocabulary());
        const auto plain_masks = std::make_shared<LocalMasks>(program, bytes);
        Matcher matcher(masks), plain(plain_masks);
        for (int step = 0; step < 12; ++step) {
            const std::span found = matcher.allowed();
            const Bits allowed(found.begin(), found.end());
            const Bits expected = by_bytes(plain, vocabulary, pieces.end());
            ASSERT_EQ(allowed, expected) << "step " << step;
            std::vector<uint32_t> tokens;
            for (uint32_t token = 0; token < pieces.end(); ++token)
                if (allowed[token / 64] >> token % 64 & 1) tokens.push_back(token);
            compared += tokens.size();
            refused += vocabulary.size() - tokens.size();
            if (tokens.empty()) break;
            // Longer pieces more often than their number would have it: they cross borders.
            uint32_t token = tokens[random() % tokens.size()];
            if (token < 256) token = tokens[random() % tokens.size()];
            matcher.push(token);
            for (const char byte : vocabulary.bytes(token)) plain.push(static_cast<uint8_t>(byte));
        }
    }
    EXPECT_GT(compared, 10'000u);
    EXPECT_GT(refused, 10'000u);
}

// At each count of a bounded string, near its bounds and far from them.
TEST(Matcher, BoundsOfStringsHoldAtEveryCount) {
    const test::Pieces pieces(1500, 5);
    for (const auto& [low, high] :
         std::vector<std::pair<int, int>>{{0, 3}, {2, 6}, {0, 40}, {30, 34}}) {
        const auto program =
            test::program_of({{"type", "string"}, {"minLength", low}, {"maxLength", high}});
        const auto masks = std::make_shared<LocalMasks>(program, pieces.vocabulary());
        Matcher matcher(masks), plain(std::make_shared<LocalMasks>(program, test::bytes_alone()));
        matcher.push('"');
        plain.push('"');
        for (int count = 0;; ++count) {
            const std::span found = matcher.allowed();
            ASSERT_EQ(Bits(found.begin(), found.end()),
                      by_bytes(plain, *pieces.vocabulary(), pieces.end()))
                << count << " of " << low << " to " << high;
            if (count == high) break;
            matcher.push('a');
            plain.push('a');
        }
    }
}

TEST(Matcher, TakesBack) {
    const auto masks = std::make_shared<LocalMasks>(
        test::program_of({{"enum", {"abc", "abd", "x"}}}), test::bytes_alone());
    Matcher matcher(masks);
    for (const char byte : std::string_view("\"ab")) matcher.push(static_cast<uint8_t>(byte));
    EXPECT_TRUE(matcher.allows('c') && matcher.allows('d') && !matcher.allows('x'));
    matcher.pop(2);
    EXPECT_TRUE(matcher.allows('a') && matcher.allows('x') && !matcher.allows('c'));
    for (const char byte : std::string_view("x\"")) matcher.push(static_cast<uint8_t>(byte));
    EXPECT_TRUE(matcher.may_end() && matcher.allows(256));
    matcher.push(256);  // the end changes nothing
    EXPECT_TRUE(matcher.allows(256) && !matcher.allows('a'));
}

TEST(Matcher, KnowsWhatHasToCome) {
    const Schema schema = {{"type", "object"},
                           {"properties", {{"name", {{"type", "string"}}}}},
                           {"required", {"name"}},
                           {"additionalProperties", false}};
    Matcher matcher(std::make_shared<LocalMasks>(test::program_of(schema), test::bytes_alone()));
    EXPECT_EQ(matcher.forced(100).bytes, R"({"name": ")");
    EXPECT_EQ(matcher.forced(4).bytes, R"({"na)");
    for (const char byte : std::string_view(R"({"name": "x)")) {
        EXPECT_TRUE(matcher.allows(static_cast<uint8_t>(byte)));
        matcher.push(static_cast<uint8_t>(byte));
    }
    EXPECT_EQ(matcher.forced(100).bytes, "");
    matcher.push('"');
    EXPECT_EQ(matcher.forced(100).bytes, "}");
    EXPECT_FALSE(matcher.may_end());
}

TEST(Matcher, ForgetsStacksThatNobodyIsOn) {
    const Schema schema = {
        {"type", "array"}, {"items", {{"type", "string"}, {"maxLength", 50}}}, {"minItems", 3}};
    const auto masks = std::make_shared<LocalMasks>(test::program_of(schema), test::bytes_alone());
    Matcher matcher(masks);
    // Each character is a counter's value of its own; the memory for them is not kept.
    matcher.push('[');
    for (int item = 0; item < 30'000; ++item) {
        if (item > 0) {
            ASSERT_TRUE(matcher.allows(','));
            for (const char byte : std::string_view(", ")) matcher.push(static_cast<uint8_t>(byte));
        }
        for (const char byte : std::string_view("\"abcdefghijklmnopqrstuvwxyz\"")) {
            matcher.push(static_cast<uint8_t>(byte));
        }
        ASSERT_EQ(matcher.allows(']'), item >= 2);
    }
}

// Schemas that could cost for ever: refused, or soon done.
TEST(Matcher, HostileSchemasAreBounded) {
    const test::Pieces pieces(4000);
    std::vector<Schema> hostile;
    Schema twice = {{"anyOf", Schema::array()}};
    for (int i = 0; i < 40; ++i)
        twice["anyOf"].push_back({{"type", "array"}, {"items", {{"$ref", "#"}}}, {"minItems", i}});
    twice["anyOf"].push_back({{"type", "null"}});
    hostile.push_back(twice);
    hostile.push_back({{"type", "string"}, {"pattern", "^(?:a?){500}a{500}$"}});
    hostile.push_back({{"type", "string"}, {"pattern", "^(?:(?:a*)*)*$"}});
    hostile.push_back({{"type", "string"}, {"pattern", "(?:.?.?.?.?.?.?.?.?){60}x"}});
    Schema many = {
        {"type", "object"}, {"properties", Schema::object()}, {"additionalProperties", false}};
    for (int i = 0; i < 5000; ++i)
        many["properties"][fmt::format("p{}", i)] = {{"type", "integer"}};
    hostile.push_back(many);
    Schema chain = {{"$ref", "#/$defs/d0"}, {"$defs", Schema::object()}};
    for (int i = 0; i < 900; ++i)
        chain["$defs"][fmt::format("d{}", i)] = {{"$ref", fmt::format("#/$defs/d{}", i + 1)}};
    chain["$defs"]["d900"] = {{"type", "integer"}};
    hostile.push_back(chain);
    for (const Schema& schema : hostile) {
        SCOPED_TRACE(schema.dump().substr(0, 60));
        const auto masks =
            std::make_shared<LocalMasks>(test::program_of(schema), pieces.vocabulary());
        Matcher matcher(masks);
        uint32_t token = 0;
        for (int step = 0; step < 40; ++step) {
            const std::span allowed = matcher.allowed();
            // The longest that is allowed: the highest, or what comes first.
            uint32_t found = UINT32_MAX;
            for (uint32_t i = 0; i < pieces.end(); ++i)
                if (allowed[i / 64] >> i % 64 & 1) found = i;
            if (found == UINT32_MAX) break;
            token = found;
            matcher.push(token);
        }
        EXPECT_LT(token, pieces.end());
    }
}

}  // namespace
}  // namespace tessera::grammar
