#include "judge/suite.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json.h"

namespace tessera {
namespace {

constexpr size_t kLineBytesMax = size_t{16} << 20;
constexpr size_t kDepthMax = 16;  // of somebody's notes
constexpr size_t kStopsMax = 16;

const std::string& text_of(const Json& value, const char* key, const std::string& where) {
    if (!value.is_string() || value.get_ref<const std::string&>().empty())
        fail("{}: \"{}\" must be a text that is not empty", where, key);
    return value.get_ref<const std::string&>();
}

std::vector<std::string> stops_of(const Json& entry, const std::string& where) {
    std::vector<std::string> stops;
    const auto found = entry.find("stop");
    if (found == entry.end() || found->is_null()) return stops;
    if (!found->is_array()) return {text_of(*found, "stop", where)};
    if (found->size() > kStopsMax)
        fail("{}: \"stop\" has {} texts, at most {} are accepted", where, found->size(), kStopsMax);
    for (const Json& one : *found) stops.push_back(text_of(one, "stop", where));
    return stops;
}

}  // namespace

JudgedSuite parse_judged_suite(std::string_view lines, std::string_view name,
                               std::string_view source) {
    JudgedSuite suite{std::string(name), {}, {}};
    size_t number = 0;
    for (size_t begin = 0; begin < lines.size();) {
        const size_t end = std::min(lines.find('\n', begin), lines.size());
        const std::string_view line = lines.substr(begin, end - begin);
        begin = end + 1;
        ++number;
        if (line.find_first_not_of(" \t\r") == line.npos) continue;
        const std::string where = fmt::format("{}:{}", source, number);
        const Json entry =
            parse_json(line, where, {.bytes_max = kLineBytesMax, .depth_max = kDepthMax});
        const char* const key = entry.is_object() && entry.contains("text") ? "text" : "prompt";
        if (!entry.is_object() || !entry.contains(key))
            fail(R"({}: expected {{"text": …}}, or {{"prompt": …, "expected": …, "stop": …}})",
                 where);
        const std::string own = fmt::format("{}:{}", name, number);
        if (entry.contains("expected")) {
            suite.tasks.push_back({own, text_of(entry[key], key, where),
                                   text_of(entry["expected"], "expected", where),
                                   stops_of(entry, where)});
        } else {
            suite.texts.push_back({own, text_of(entry[key], key, where)});
        }
        if (!suite.texts.empty() && !suite.tasks.empty())
            fail("{}: a file holds texts or tasks, this one both", where);
    }
    if (suite.texts.empty() && suite.tasks.empty()) fail("{}: holds nothing to judge by", source);
    return suite;
}

bool is_right(const JudgedTask& task, std::string_view answer) {
    return task.stops.empty() ? answer.starts_with(task.expected) : answer == task.expected;
}

}  // namespace tessera
