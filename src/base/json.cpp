#include "base/json.h"

#include <set>
#include <string>
#include <vector>

#include "base/error.h"

namespace tessera {
namespace {

// One pass over the bytes, aware of strings: refuses depth before the recursive parser sees it and,
// where allowed, drops the commas that stand before a closing bracket.
std::string admit(std::string_view text, std::string_view source, const JsonLimits& limits) {
    std::string admitted;
    admitted.reserve(text.size());
    size_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            admitted += c;
            if (c == '\\' && i + 1 < text.size()) admitted += text[++i];
            if (c == '"') in_string = false;
            continue;
        }
        if (c == '"') in_string = true;
        if ((c == '[' || c == '{') && ++depth > limits.depth_max) {
            fail("{}: JSON nests deeper than {} levels at byte {}", source, limits.depth_max, i);
        }
        if ((c == ']' || c == '}') && depth > 0) --depth;
        if (c == ',' && limits.trailing_commas) {
            const size_t next = text.find_first_not_of(" \t\r\n", i + 1);
            if (next != std::string_view::npos && (text[next] == ']' || text[next] == '}'))
                continue;
        }
        admitted += c;
    }
    return admitted;
}

}  // namespace

Json parse_json(std::string_view text, std::string_view source, const JsonLimits& limits) {
    if (text.size() > limits.bytes_max) {
        fail("{}: {} bytes of JSON, at most {} are accepted", source, text.size(),
             limits.bytes_max);
    }
    const std::string admitted = admit(text, source, limits);
    std::vector<std::set<std::string>> keys;  // of the objects that are open, innermost last
    const auto watch = [&](int, Json::parse_event_t event, Json& value) {
        if (event == Json::parse_event_t::object_start) keys.emplace_back();
        if (event == Json::parse_event_t::object_end) keys.pop_back();
        if (event == Json::parse_event_t::key &&
            !keys.back().insert(value.get<std::string>()).second) {
            fail("{}: the key \"{}\" appears twice in one object", source,
                 value.get<std::string>());
        }
        return true;
    };
    try {
        return Json::parse(admitted, watch);
    } catch (const Json::exception& broken) {
        fail("{}: not valid JSON: {}", source, broken.what());
    }
}

}  // namespace tessera
