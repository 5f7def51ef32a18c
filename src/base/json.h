// JSON from strangers, read into nlohmann::json under limits. Published files are sometimes not
// quite JSON (a trailing comma) and hostile ones are deep or huge; both are settled here, once.
#pragma once

#include <cstddef>
#include <string_view>

#include <nlohmann/json.hpp>

namespace tessera {

using Json = nlohmann::json;

struct JsonLimits {
    size_t bytes_max =
        100'000'000;        // the largest published index is 20 MB; parsed it takes 20 times more
    size_t depth_max = 64;  // the deepest published config nests 6
    bool trailing_commas = false;  // tolerate ",]" and ",}"
};

// Parses `text`; throws Error naming `source` with the byte offset of what is wrong. Duplicate keys
// are refused: two readers of such a file can disagree on what it says.
Json parse_json(std::string_view text, std::string_view source, const JsonLimits& limits = {});

// The same with the keys of every object as they stand in the text: for a file that is written
// again.
nlohmann::ordered_json parse_json_in_order(std::string_view text, std::string_view source,
                                           const JsonLimits& limits = {});

}  // namespace tessera
