#include "text/python_json.h"

#include <array>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "base/json.h"

namespace tessera {
namespace {

// repr(): the shortest digits that read back as `value`, with an exponent below 1e-4 and from 1e16.
std::string python_float(double value) {
    const double magnitude = std::abs(value);
    const bool fixed = magnitude == 0 || (magnitude >= 1e-4 && magnitude < 1e16);
    std::array<char, 64> digits;
    const auto format = fixed ? std::chars_format::fixed : std::chars_format::scientific;
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value, format).ptr;
    std::string text(digits.data(), end);
    if (fixed && text.find('.') == std::string::npos) text += ".0";
    return text;
}

void append_quoted(std::string_view text, std::string& out) {
    out += '"';
    append_json_escaped(text, out);
    out += '"';
}

void append(const OrderedJson& value, std::string& out) {
    if (value.is_string()) {
        append_quoted(value.get_ref<const std::string&>(), out);
    } else if (value.is_number_float()) {
        out += python_float(value.get<double>());
    } else if (value.is_array()) {
        std::string_view separator = "[";
        for (const OrderedJson& item : value) {
            out += separator;
            append(item, out);
            separator = ", ";
        }
        out += value.empty() ? "[]" : "]";
    } else if (value.is_object()) {
        std::string_view separator = "{";
        for (const auto& [key, item] : value.items()) {
            out += separator;
            append_quoted(key, out);
            out += ": ";
            append(item, out);
            separator = ", ";
        }
        out += value.empty() ? "{}" : "}";
    } else {
        out += value.dump();
    }
}

}  // namespace

std::optional<OrderedJson> parse_ordered_json(std::string_view text, std::string* why) {
    try {
        // The parser behind these takes a zero byte for the end of the text and never sees the
        // rest.
        if (const size_t zero = text.find('\0'); zero != std::string_view::npos) {
            fail("JSON: a zero byte at byte {}", zero);
        }
        parse_json(text, "JSON");
        return OrderedJson::parse(text);
    } catch (const std::exception& refused) {
        if (why != nullptr) *why = refused.what();
        return std::nullopt;
    }
}

std::string python_json(const OrderedJson& value) {
    std::string text;
    append(value, text);
    return text;
}

std::string python_text(const OrderedJson& value) {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
    if (value.is_null()) return "None";
    return python_json(value);
}

void append_json_escaped(std::string_view text, std::string& out) {
    for (const char c : text) {
        switch (c) {
            case '"':
                out += "\\\"";
                break;
            case '\\':
                out += "\\\\";
                break;
            case '\n':
                out += "\\n";
                break;
            case '\r':
                out += "\\r";
                break;
            case '\t':
                out += "\\t";
                break;
            case '\b':
                out += "\\b";
                break;
            case '\f':
                out += "\\f";
                break;
            default:
                if (static_cast<unsigned char>(c) >= 0x20) {
                    out += c;
                } else {
                    out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
                }
        }
    }
}

}  // namespace tessera
