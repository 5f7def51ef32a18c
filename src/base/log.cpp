#include "base/log.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>

#include <fmt/chrono.h>
#include <spdlog/sinks/stdout_sinks.h>

#include "base/json.h"

namespace tessera {
namespace {

constexpr const char* kWords = "tessera";
// The payload of this logger was escaped field by field, for the format of its sink.
constexpr const char* kEvents = "tessera.event";

std::atomic<LogFormat> events_format = LogFormat::kPlain;

// Bytes of the well-formed UTF-8 character at the front; 0: there is none.
size_t character_bytes(std::string_view text) {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
    const uint8_t first = byte(0);
    if (first < 0x80) return 1;
    const size_t bytes = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || text.size() < bytes) return 0;
    for (size_t i = 1; i < bytes; ++i)
        if ((byte(i) & 0xc0) != 0x80) return 0;
    // Overlong forms, surrogates, and what lies beyond U+10FFFF.
    const bool broken = (first == 0xe0 && byte(1) < 0xa0) || (first == 0xed && byte(1) > 0x9f) ||
                        (first == 0xf0 && byte(1) < 0x90) || (first == 0xf4 && byte(1) > 0x8f);
    return broken ? 0 : bytes;
}

// C0, DEL, C1 (U+0080 to U+009F), and the line and paragraph separators U+2028 and U+2029.
bool is_control(std::string_view character) {
    const auto first = static_cast<uint8_t>(character[0]);
    if (character.size() == 1) return first < 0x20 || first == 0x7f;
    if (character.size() == 2) return first == 0xc2 && static_cast<uint8_t>(character[1]) < 0xa0;
    return character == "\u2028" || character == "\u2029";
}

// Well-formed JSON of any bytes. C1 and the separators are legal in it, and escaped all the same:
// such a line may be read on a terminal.
std::string json_text(std::string_view text) {
    std::string safe;
    const std::string written = Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
    for (size_t i = 0; i < written.size();) {
        const size_t bytes = character_bytes(std::string_view(written).substr(i));
        const std::string_view character = std::string_view(written).substr(i, bytes);
        i += bytes;
        if (!is_control(character))
            safe += character;
        else if (bytes == 1)
            safe += "\\u007f";
        else if (bytes == 2)
            safe += fmt::format("\\u{:04x}", 0x80 | (static_cast<uint8_t>(character[1]) & 0x3f));
        else
            safe += character == "\u2028" ? "\\u2028" : "\\u2029";
    }
    return safe;
}

// A value that could be taken for two, or for another's name, stands in quotes.
std::string plain_text(std::string_view text) {
    const std::string escaped = escape_controls(text);
    if (!escaped.empty() && escaped.find_first_of(" =\"") == std::string::npos) return escaped;
    std::string quoted = "\"";
    for (const char c : escaped) {
        if (c == '"') quoted += '\\';
        quoted += c;
    }
    return quoted + '"';
}

std::string value_text(const LogValue& value, LogFormat format) {
    if (const auto* text = std::get_if<std::string_view>(&value))
        return format == LogFormat::kJson ? json_text(*text) : plain_text(*text);
    if (const auto* number = std::get_if<double>(&value))
        return std::isfinite(*number) ? fmt::format("{:.6g}", *number) : "null";
    if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
    return fmt::format("{}", std::get<int64_t>(value));
}

std::string time_text(spdlog::log_clock::time_point time) {
    const int64_t ms =
        std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count();
    return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(static_cast<time_t>(ms / 1000)),
                       ms % 1000);
}

class Lines final : public spdlog::formatter {
  public:
    explicit Lines(LogFormat format) : format_(format) {}

    void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& line) override {
        const auto view = [](spdlog::string_view_t s) {
            return std::string_view(s.data(), s.size());
        };
        const std::string_view payload = view(message.payload);
        const bool event = view(message.logger_name) == kEvents;
        const auto out = std::back_inserter(line);
        if (format_ == LogFormat::kPlain) {
            fmt::format_to(out, "tessera: {}\n",
                           event ? std::string(payload) : escape_controls(payload));
            return;
        }
        fmt::format_to(out, R"({{"time":"{}","level":"{}",)", time_text(message.time),
                       view(spdlog::level::to_string_view(message.level)));
        if (event)
            fmt::format_to(out, "{}}}\n", payload);
        else
            fmt::format_to(out, "\"message\":{}}}\n", json_text(payload));
    }

    std::unique_ptr<spdlog::formatter> clone() const override {
        return std::make_unique<Lines>(format_);
    }

  private:
    LogFormat format_;
};

}  // namespace

void log_to(spdlog::sink_ptr sink, spdlog::level::level_enum level, LogFormat format) {
    sink->set_formatter(std::make_unique<Lines>(format));
    const auto words = std::make_shared<spdlog::logger>(kWords, sink);
    const auto events = std::make_shared<spdlog::logger>(kEvents, sink);
    for (const auto& logger : {words, events}) logger->set_level(level);
    events_format = format;
    spdlog::drop(kEvents);
    spdlog::register_logger(events);
    spdlog::set_default_logger(words);
}

void log_to_stderr(spdlog::level::level_enum level, LogFormat format) {
    log_to(std::make_shared<spdlog::sinks::stderr_sink_mt>(), level, format);
}

void log_event(spdlog::level::level_enum level, std::string_view event,
               std::initializer_list<LogField> fields) {
    const std::shared_ptr<spdlog::logger> logger = spdlog::get(kEvents);
    if (!logger || !logger->should_log(level)) return;
    const LogFormat format = events_format;
    std::string line =
        format == LogFormat::kJson ? "\"event\":" + json_text(event) : escape_controls(event);
    for (const auto& [name, value] : fields) {
        const std::string text = value_text(value, format);
        line += format == LogFormat::kJson ? fmt::format(",{}:{}", json_text(name), text)
                                           : fmt::format(" {}={}", name, text);
    }
    logger->log(level, spdlog::string_view_t(line.data(), line.size()));
}

std::string escape_controls(std::string_view text) {
    std::string safe;
    safe.reserve(text.size());
    while (!text.empty()) {
        const size_t bytes = character_bytes(text);
        const std::string_view character = text.substr(0, std::max<size_t>(bytes, 1));
        if (character == "\\")
            safe += "\\\\";
        else if (bytes > 0 && !is_control(character))
            safe += character;
        else
            for (const char c : character)
                safe += fmt::format("\\x{:02x}", static_cast<uint8_t>(c));
        text.remove_prefix(character.size());
    }
    return safe;
}

}  // namespace tessera
