// One line a fact, on stderr; stdout belongs to generated text. Whatever is logged stays one line:
// control bytes and broken UTF-8 are escaped where the line is formatted, so that no text from
// outside can forge a line or speak to a terminal.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include <spdlog/spdlog.h>

namespace tessera {

enum class LogFormat : uint8_t {
    kPlain,  // "tessera: words"; an event: "tessera: request id=… status=200"
    kJson,   // {"time":"2026-06-09T12:00:00.000Z","level":"info","message":"words"}; an event:
             // {…,"event":"request","id":"…","status":200}
};

// Sends the log to stderr from `level` up. Called by the program, not by tests; the last call
// holds.
void log_to_stderr(spdlog::level::level_enum level, LogFormat format = LogFormat::kPlain);

// The same for any sink.
void log_to(spdlog::sink_ptr sink, spdlog::level::level_enum level, LogFormat format);

// A fact with fields, for machines to count. Neither prompts nor secrets belong in it.
using LogValue = std::variant<int64_t, double, bool, std::string_view>;
using LogField = std::pair<std::string_view, LogValue>;
void log_event(spdlog::level::level_enum level, std::string_view event,
               std::initializer_list<LogField> fields);

// `text` with control bytes and bytes that are not UTF-8 as \xNN, and \ as \\; printable otherwise.
std::string escape_controls(std::string_view text);

}  // namespace tessera
