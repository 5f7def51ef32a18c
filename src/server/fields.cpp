#include "server/fields.h"

#include <cmath>

#include <fmt/format.h>

namespace tessera {
namespace {

// Values of a text that may be JSON, counted by what separates them outside strings: memory is
// spent on values, so a bomb is found before the parser builds it.
size_t values_at_most(std::string_view text) {
    size_t values = 1;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            if (c == '\\') ++i;
            if (c == '"') in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == ',' || c == '[' || c == '{') {
            ++values;
        }
    }
    return values;
}

}  // namespace

OrProblem<OrderedJson> parse_body(std::string_view body) {
    if (body.find_first_not_of(" \t\r\n") == body.npos)
        return ApiProblem{.message = "the body is empty, expected a JSON object"};
    if (values_at_most(body) > kJsonValuesMax) {
        return ApiProblem{.message =
                              fmt::format("the body has more than {} JSON values", kJsonValuesMax)};
    }
    std::string why;
    std::optional<OrderedJson> json = parse_ordered_json(body, &why);
    if (!json) return ApiProblem{.message = "the body is not valid: " + why};
    if (!json->is_object())
        return ApiProblem{
            .message = fmt::format("the body is {}, expected a JSON object", described(*json))};
    return std::move(*json);
}

std::string described(const OrderedJson& value) {
    if (value.is_null()) return "null";
    if (value.is_boolean()) return value.get<bool>() ? "true" : "false";
    if (value.is_string()) return "a string";
    if (value.is_array()) return "a list";
    if (value.is_object()) return "an object";
    return value.dump();
}

const OrderedJson* Fields::any(std::string_view name) const {
    const auto found = object_.find(std::string(name));
    return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::string Fields::path(std::string_view name) const {
    return path_.empty() ? std::string(name) : fmt::format("{}.{}", path_, name);
}

void Fields::refuse(std::string_view name, std::string_view what, uint32_t status) {
    const std::string field = path(name);
    refuse(ApiProblem{.status = status,
                      .message = fmt::format("{}: {}", field, what),
                      .param = field,
                      .code = status == 501 ? "unsupported" : "invalid_value"});
}

void Fields::refuse(ApiProblem problem) {
    if (!problem_) problem_ = std::move(problem);
}

std::optional<double> Fields::number(std::string_view name, double low, double high) {
    const OrderedJson* const value = any(name);
    if (value == nullptr) return std::nullopt;
    if (value->is_number()) {
        const auto given = value->get<double>();
        if (given >= low && given <= high) return given;
    }
    refuse(name,
           fmt::format("expected a number from {} to {}, found {}", low, high, described(*value)));
    return std::nullopt;
}

std::optional<int64_t> Fields::integer(std::string_view name, int64_t low, int64_t high) {
    const OrderedJson* const value = any(name);
    if (value == nullptr) return std::nullopt;
    if (value->is_number_unsigned()) {
        const auto given = value->get<uint64_t>();
        if (given <= static_cast<uint64_t>(INT64_MAX) && static_cast<int64_t>(given) >= low &&
            static_cast<int64_t>(given) <= high)
            return static_cast<int64_t>(given);
    } else if (value->is_number_integer()) {
        const auto given = value->get<int64_t>();
        if (given >= low && given <= high) return given;
    } else if (value->is_number_float()) {
        // JSON does not tell 3.0 from 3.
        const auto given = value->get<double>();
        constexpr double kExact = 9007199254740992.0;
        if (std::abs(given) <= kExact && given == std::floor(given) &&
            given >= static_cast<double>(low) && given <= static_cast<double>(high))
            return static_cast<int64_t>(given);
    }
    refuse(name, fmt::format("expected a whole number from {} to {}, found {}", low, high,
                             described(*value)));
    return std::nullopt;
}

std::optional<bool> Fields::boolean(std::string_view name) {
    const OrderedJson* const value = any(name);
    if (value == nullptr) return std::nullopt;
    if (value->is_boolean()) return value->get<bool>();
    refuse(name, fmt::format("expected true or false, found {}", described(*value)));
    return std::nullopt;
}

std::optional<std::string> Fields::text(std::string_view name) {
    const OrderedJson* const value = any(name);
    if (value == nullptr) return std::nullopt;
    if (value->is_string()) return value->get<std::string>();
    refuse(name, fmt::format("expected a string, found {}", described(*value)));
    return std::nullopt;
}

const OrderedJson* Fields::object(std::string_view name) {
    const OrderedJson* const value = any(name);
    if (value == nullptr || value->is_object()) return value;
    refuse(name, fmt::format("expected an object, found {}", described(*value)));
    return nullptr;
}

const OrderedJson* Fields::list(std::string_view name) {
    const OrderedJson* const value = any(name);
    if (value == nullptr || value->is_array()) return value;
    refuse(name, fmt::format("expected a list, found {}", described(*value)));
    return nullptr;
}

}  // namespace tessera
