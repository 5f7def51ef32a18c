#include "server/times.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

constexpr UnixMs kDayMs = 86'400'000;
constexpr UnixMs kJune9 = 20'613 * kDayMs;  // 2026-06-09

TEST(Times, AreReadAndWritten) {
    const struct {
        std::string_view text;
        std::optional<UnixMs> begin, end;
    } cases[] = {
        {"2026-06-09", kJune9, kJune9 + kDayMs},  // a day is in its until
        {"2026-06-09T12:30Z", kJune9 + 45'000'000, kJune9 + 45'000'000},
        {"2026-06-09T12:30:15Z", kJune9 + 45'015'000, kJune9 + 45'015'000},
        {"1970-01-01", 0, kDayMs},
        {"2024-02-29", 19'782 * kDayMs, 19'783 * kDayMs},
        {"2026-02-29", {}, {}},
        {"2026-13-01", {}, {}},
        {"2026-06-31", {}, {}},
        {"1969-12-31", {}, {}},
        {"2026-6-9", {}, {}},
        {"2026-06-09T24:00Z", {}, {}},
        {"2026-06-09T12:60Z", {}, {}},
        {"2026-06-09T12:30", {}, {}},  // whose time?
        {"2026-06-09T12:30:15", {}, {}},
        {"2026-06-09T12:30+02:00", {}, {}},
        {"2026-06-09 12:30Z", {}, {}},
        {"2026-06-09Z", {}, {}},
        {"2026-06-09T", {}, {}},
        {"+026-06-09", {}, {}},
        {"tomorrow", {}, {}},
        {"", {}, {}},
    };
    for (const auto& c : cases) {
        EXPECT_EQ(parse_time(c.text, DayEdge::kBegin), c.begin) << c.text;
        EXPECT_EQ(parse_time(c.text, DayEdge::kEnd), c.end) << c.text;
    }
    EXPECT_EQ(time_text(kJune9 + 45'015'999), "2026-06-09T12:30:15Z");
}

}  // namespace
}  // namespace tessera
