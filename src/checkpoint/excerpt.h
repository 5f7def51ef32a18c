// Foreign text in a message: in quotes, control bytes escaped so that a name cannot forge a line of
// the log, and cut where it goes on too long.
#pragma once

#include <string>
#include <string_view>

#include <fmt/format.h>

#include "base/json.h"

namespace tessera {

inline constexpr size_t kExcerptMax = 160;  // the longest published tensor name has 71 bytes

inline std::string excerpt(std::string_view text) {
    return fmt::format("{:?}{}", text.substr(0, kExcerptMax),
                       text.size() > kExcerptMax ? "..." : "");
}

// A JSON value as it was written; JSON's own escapes keep it on one line.
inline std::string json_excerpt(const Json& value) {
    std::string text = value.dump(-1, ' ', true);
    if (text.size() > kExcerptMax) text.replace(kExcerptMax, std::string::npos, "...");
    return text;
}

}  // namespace tessera
