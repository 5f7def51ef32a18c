#include "server/times.h"

#include <charconv>
#include <chrono>

#include <fmt/chrono.h>

namespace tessera {
namespace {

// Takes two or four digits and the `mark` behind them off the front; none if they are not there.
std::optional<uint32_t> take(std::string_view& text, size_t digits, std::string_view mark) {
    if (text.size() < digits + mark.size()) return std::nullopt;
    uint32_t value = 0;
    const auto [end, problem] = std::from_chars(text.data(), text.data() + digits, value);
    if (problem != std::errc() || end != text.data() + digits) return std::nullopt;
    if (!text.substr(digits).starts_with(mark)) return std::nullopt;
    text.remove_prefix(digits + mark.size());
    return value;
}

}  // namespace

std::optional<UnixMs> parse_time(std::string_view text, DayEdge edge) {
    using namespace std::chrono;
    const auto years = take(text, 4, "-"), months = take(text, 2, "-"), days = take(text, 2, "");
    if (!years || !months || !days) return std::nullopt;
    const year_month_day date(year(static_cast<int>(*years)), month(*months), day(*days));
    if (!date.ok() || *years < 1970) return std::nullopt;
    sys_seconds moment = sys_days(date);
    if (text.empty()) {
        if (edge == DayEdge::kEnd) moment += hours(24);
        return duration_cast<milliseconds>(moment.time_since_epoch()).count();
    }
    if (text[0] != 'T') return std::nullopt;
    text.remove_prefix(1);
    const bool with_seconds = text.size() == std::string_view("12:30:15Z").size();
    const auto hour = take(text, 2, ":"), minute = take(text, 2, with_seconds ? ":" : "Z");
    const auto second = with_seconds ? take(text, 2, "Z") : 0;
    if (!hour || !minute || !second || !text.empty()) return std::nullopt;
    if (*hour > 23 || *minute > 59 || *second > 59) return std::nullopt;
    moment += hours(*hour) + minutes(*minute) + seconds(*second);
    return duration_cast<milliseconds>(moment.time_since_epoch()).count();
}

std::string time_text(UnixMs time) {
    constexpr UnixMs kSecondMs = 1000;
    return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<time_t>(time / kSecondMs)));
}

}  // namespace tessera
