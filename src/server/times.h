// Days and moments as people write them, UTC.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "server/database.h"

namespace tessera {

// What a day alone means: "until 23 June" has the day in it.
enum class DayEdge : uint8_t { kBegin, kEnd };

// "2026-06-09", "2026-06-09T12:30Z" or "2026-06-09T12:30:15Z", from the year 1970 on; none if it is
// no such thing, or no day of the calendar.
std::optional<UnixMs> parse_time(std::string_view text, DayEdge edge);

// "2026-06-09T12:30:15Z".
std::string time_text(UnixMs time);

}  // namespace tessera
