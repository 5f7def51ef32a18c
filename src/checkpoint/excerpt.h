// Foreign text in a message: in quotes, everything but printable ASCII escaped so that a name
// cannot forge a line of the log, and cut where it goes on too long.
#pragma once

#include <string>
#include <string_view>

#include <fmt/format.h>

#include "base/json.h"

namespace tessera {

inline constexpr size_t kExcerptMax = 160;  // twice as long as any published tensor name

// Not fmt's {:?}: fmt 9 aborts on bytes that are not UTF-8.
inline std::string excerpt(std::string_view text) {
    std::string shown = "\"";
    for (const char c : text.substr(0, kExcerptMax)) {
        if (c == '"' || c == '\\') {
            shown += '\\';
            shown += c;
        } else if (c >= 0x20 && c < 0x7f) {
            shown += c;
        } else {
            shown += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
        }
    }
    return shown + (text.size() > kExcerptMax ? "\"..." : "\"");
}

// A JSON value as it was written; JSON's own escapes keep it on one line.
inline std::string json_excerpt(const Json& value) {
    std::string text = value.dump(-1, ' ', true);
    if (text.size() > kExcerptMax) text.replace(kExcerptMax, std::string::npos, "...");
    return text;
}

}  // namespace tessera
