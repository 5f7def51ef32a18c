// JSON and its scalars spelt as Python spells them: the chat templates that models are trained with
// run in Python, so a prompt must contain exactly these bytes.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace tessera {

// Keys in the order of the text they came from: templates write them in that order.
using OrderedJson = nlohmann::ordered_json;

// Parses request text, under the limits of base/json.h (depth 64, no key twice). None if the text
// is not such JSON; `why`, if given, then holds the reason.
std::optional<OrderedJson> parse_ordered_json(std::string_view text, std::string* why = nullptr);

// json.dumps(value, ensure_ascii=False): ", " and ": " between things, floats as repr().
// An integer beyond 64 bits is already a float here.
std::string python_json(const OrderedJson& value);

// What a template prints for {{ value }}: strings bare, True, False and None, numbers; objects and
// lists as python_json.
std::string python_text(const OrderedJson& value);

// Appends `text` with the escapes of a JSON string, without the quotes; bytes from 0x80 on pass.
void append_json_escaped(std::string_view text, std::string& out);

}  // namespace tessera
