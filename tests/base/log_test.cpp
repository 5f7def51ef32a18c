#include "base/log.h"

#include <sstream>

#include <gmock/gmock.h>
#include <spdlog/sinks/ostream_sink.h>

#include "base/json.h"

namespace tessera {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;
using testing::Not;

// Restores the process' own logger: other tests of this program log too.
class Log : public testing::Test {
  protected:
    void start(LogFormat format, spdlog::level::level_enum level = spdlog::level::info) {
        log_to(std::make_shared<spdlog::sinks::ostream_sink_mt>(out_), level, format);
    }
    ~Log() override {
        spdlog::drop("tessera.event");
        spdlog::set_default_logger(before_);
    }

    std::ostringstream out_;
    std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
};

const std::string kForgery =
    "x\n{\"level\":\"error\"}\r\x1b[2J\x7f \xc2\x9b"
    "31m \xe2\x80\xa8 \xff \xed\xa0\x80 \xc0\xaf end";

TEST(EscapeControls, LeavesTextAndEscapesTheRest) {
    const struct {
        std::string_view text, escaped;
    } cases[] = {
        {"", ""},
        {"plain τ 漢字 🎲", "plain τ 漢字 🎲"},
        {"a\nb\r\t", R"(a\x0ab\x0d\x09)"},
        {R"(a\nb)", R"(a\\nb)"},  // not the same as a line feed
        {std::string_view("\0", 1), R"(\x00)"},
        {"\x1b[31m", R"(\x1b[31m)"},
        {"\x7f", R"(\x7f)"},
        {"\xc2\x9b", R"(\xc2\x9b)"},          // C1: a terminal's other escape
        {"\xc2\xa0", "\xc2\xa0"},             // the first character after C1
        {"\xe2\x80\xa9", R"(\xe2\x80\xa9)"},  // a paragraph separator
        {"\xff\xc3", R"(\xff\xc3)"},          // no UTF-8, and cut UTF-8
        {"\xc0\xaf", R"(\xc0\xaf)"},          // overlong
        {"\xed\xa0\x80", R"(\xed\xa0\x80)"},  // a surrogate
        {"\xf4\x90\x80\x80", R"(\xf4\x90\x80\x80)"},
    };
    for (const auto& c : cases) EXPECT_EQ(escape_controls(c.text), c.escaped);
}

TEST_F(Log, PlainLinesCannotBeForged) {
    start(LogFormat::kPlain);
    spdlog::warn("refused {}", kForgery);
    EXPECT_THAT(out_.str(), testing::StartsWith("tessera: refused x\\x0a{"));
    EXPECT_EQ(std::ranges::count(out_.str(), '\n'), 1);
    for (const char* control : {"\r", "\x1b", "\x7f", "\xc2\x9b", "\xff"})
        EXPECT_THAT(out_.str(), Not(HasSubstr(control)));
}

TEST_F(Log, JsonLinesCannotBeForged) {
    start(LogFormat::kJson);
    spdlog::warn("refused {}", kForgery);
    EXPECT_EQ(std::ranges::count(out_.str(), '\n'), 1);
    for (const char* control : {"\r", "\x1b", "\x7f", "\xc2\x9b", "\xff", "\xe2\x80\xa8"})
        EXPECT_THAT(out_.str(), Not(HasSubstr(control)));
    const Json line = Json::parse(out_.str());
    EXPECT_EQ(line.at("level"), "warning");
    EXPECT_THAT(line.at("message").get<std::string>(),
                testing::StartsWith("refused x\n{\"level\""));
    EXPECT_THAT(line.at("time").get<std::string>(), MatchesRegex("20..-..-..T..:..:..\\....Z"));
}

TEST_F(Log, EventsKeepTheirFieldsApart) {
    start(LogFormat::kPlain);
    log_event(spdlog::level::info, "request",
              {{"id", "a1"},
               {"agent", "curl status=200 \"x\"\n"},
               {"status", int64_t{404}},
               {"seconds", 0.25},
               {"cut", true},
               {"empty", ""}});
    EXPECT_EQ(out_.str(),
              "tessera: request id=a1 agent=\"curl status=200 \\\"x\\\"\\x0a\" status=404 "
              "seconds=0.25 cut=true empty=\"\"\n");
}

TEST_F(Log, EventsAreJsonFields) {
    start(LogFormat::kJson);
    log_event(spdlog::level::info, "request",
              {{"id", kForgery}, {"status", int64_t{200}}, {"rate", 1.0 / 0.0}});
    const Json line = Json::parse(out_.str());
    EXPECT_EQ(line.at("event"), "request");
    EXPECT_EQ(line.at("status"), 200);
    EXPECT_TRUE(line.at("rate").is_null());
    EXPECT_EQ(std::ranges::count(out_.str(), '\n'), 1);
}

TEST_F(Log, TheLevelHoldsForBoth) {
    start(LogFormat::kPlain, spdlog::level::warn);
    spdlog::info("words");
    log_event(spdlog::level::info, "event", {});
    EXPECT_EQ(out_.str(), "");
    log_event(spdlog::level::warn, "event", {});
    EXPECT_EQ(out_.str(), "tessera: event\n");
}

}  // namespace
}  // namespace tessera
