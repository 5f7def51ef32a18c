// Stop strings: the same text however the reply is cut, the first that is complete counts.
#include "text/stop.h"

#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "support/seeded.h"

namespace tessera {
namespace {

struct Outcome {
    std::string text;
    bool stopped;

    bool operator==(const Outcome&) const = default;
};

// `cut` says how long the next piece is.
template <typename Cut>
Outcome push_all(const std::vector<std::string>& stops, std::string_view reply, Cut cut) {
    StopFinder finder(stops);
    std::string text;
    while (!reply.empty()) {
        const size_t length = std::min<size_t>(cut(), reply.size());
        text += finder.push(reply.substr(0, length));
        reply.remove_prefix(length);
    }
    text += finder.finish();
    return {text, finder.stopped()};
}

// The definition, byte by byte: the first end of any stop, and of those that end there the longest.
Outcome by_definition(const std::vector<std::string>& stops, const std::string& reply) {
    for (size_t end = 1; end <= reply.size(); ++end) {
        const std::string_view read = std::string_view(reply).substr(0, end);
        size_t longest = 0;
        for (const std::string& stop : stops) {
            if (read.ends_with(stop)) longest = std::max(longest, stop.size());
        }
        if (longest > 0) return {reply.substr(0, end - longest), true};
    }
    return {reply, false};
}

struct Case {
    const char* what;
    std::vector<std::string> stops;
    std::string reply;
    Outcome outcome;
};

TEST(StopFinder, AnyCutGivesTheSameText) {
    using namespace std::string_literals;
    for (const Case& known : std::vector<Case>{
             {"none", {}, "abc", {"abc", false}},
             {"empty ones are ignored", {"", ""}, "abc", {"abc", false}},
             {"empty beside another", {"", "c"}, "abc", {"ab", true}},
             {"at once", {"a"}, "abc", {"", true}},
             {"the whole", {"abc"}, "abc", {"", true}},
             {"after the end", {"abcd"}, "abc", {"abc", false}},
             {"the first of two", {"d", "b"}, "abcd", {"a", true}},
             {"complete first, begun later", {"bcde", "cd"}, "abcdef", {"ab", true}},
             {"complete together: the longer", {"cd", "bcd", "d"}, "abcdef", {"a", true}},
             {"one within another", {"abcabd", "ca"}, "abcabd", {"ab", true}},
             {"a false start", {"aab"}, "aaaab", {"aa", true}},
             {"false starts to the end", {"aab"}, "aaaaaa", {"aaaaaa", false}},
             {"twice", {"x"}, "axbxc", {"a", true}},
             {"repeated", {"x", "x", "x"}, "ax", {"a", true}},
             {"newlines", {"\n\n"}, "a\nb\n\nc", {"a\nb", true}},
             {"a zero byte", {"\0x"s}, "a\0b\0xc"s, {"a\0b"s, true}},
             {"characters of many bytes", {"你好"}, "a你你好b", {"a你", true}},
             {"tail of a character", {"é"}, "a\xc3", {"a\xc3", false}},
             {"longer than the reply", {std::string(1000, 'a')}, "aaaa", {"aaaa", false}}}) {
        SCOPED_TRACE(known.what);
        EXPECT_EQ(by_definition(known.stops, known.reply), known.outcome);
        for (size_t length = 1; length <= known.reply.size(); ++length) {
            EXPECT_EQ(push_all(known.stops, known.reply, [=] { return length; }), known.outcome)
                << "pieces of " << length;
        }
    }
}

// Two letters, short stops, all overlapping one another.
TEST(StopFinder, RandomOnesFollowTheDefinition) {
    for (uint64_t round = 0; round < 3000; ++round) {
        uint64_t draws = 0;
        const auto draw = [&](uint64_t below) { return test::splitmix64(round, draws++) % below; };
        const auto word = [&](uint64_t length) {
            std::string text;
            while (text.size() < length) text += static_cast<char>('a' + draw(2));
            return text;
        };
        std::vector<std::string> stops;
        for (uint64_t count = draw(4); count > 0; --count) stops.push_back(word(draw(9)));
        const std::string reply = word(draw(40));
        EXPECT_EQ(push_all(stops, reply, [&] { return draw(5); }), by_definition(stops, reply))
            << reply;
    }
}

// Text is given as soon as it is certain, and only then.
TEST(StopFinder, HoldsNoMoreThanItMust) {
    StopFinder finder({"stop", "to"});
    EXPECT_EQ(finder.push("a st"), "a ");
    EXPECT_EQ(finder.push("a"), "sta");
    EXPECT_EQ(finder.push("s"), "");
    EXPECT_EQ(finder.push(""), "");
    EXPECT_EQ(finder.push("st"), "s");
    EXPECT_FALSE(finder.stopped());
    EXPECT_EQ(finder.push("op and more"), "s");  // "to" was complete before "stop"
    EXPECT_TRUE(finder.stopped());
    EXPECT_EQ(finder.push("stop"), "");
    EXPECT_EQ(finder.finish(), "");
}

TEST(StopFinder, TakesAHundredThousandStops) {
    std::vector<std::string> stops;
    for (uint32_t i = 0; i < 100'000; ++i) stops.push_back(fmt::format("<stop {:05}>", i));
    const std::string reply = "<stop> <stop 1 <stop 0000 and <stop 99999> over";
    EXPECT_EQ(push_all(stops, reply, [] { return 1; }),
              (Outcome{"<stop> <stop 1 <stop 0000 and ", true}));
    EXPECT_EQ(push_all(stops, reply, [] { return 100; }),
              (Outcome{"<stop> <stop 1 <stop 0000 and ", true}));
}

}  // namespace
}  // namespace tessera
