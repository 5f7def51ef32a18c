#include "server/ask.h"

#include <algorithm>

#include <fmt/format.h>

namespace tessera {

void read_sampling(Fields& fields, double temperature_max, Sampling& sampling) {
    constexpr int64_t kTopKMax = 1'000'000;
    if (const auto t = fields.number("temperature", 0, temperature_max))
        sampling.temperature = static_cast<float>(*t);
    if (const auto p = fields.number("top_p", 0, 1)) {
        if (*p < 1e-6) fields.refuse("top_p", fmt::format("expected more than 0, found {}", *p));
        sampling.top_p = static_cast<float>(*p);
    }
    // -1 is how other servers say "all".
    if (const auto k = fields.integer("top_k", -1, kTopKMax))
        sampling.top_k = static_cast<uint32_t>(std::max<int64_t>(*k, 0));
    if (const auto p = fields.number("min_p", 0, 1)) sampling.min_p = static_cast<float>(*p);
}

std::optional<uint32_t> read_max_draft(Fields& fields) {
    const OrderedJson* const given = fields.any("speculative");
    if (given == nullptr) return std::nullopt;
    if (given->is_boolean()) return given->get<bool>() ? std::nullopt : std::optional(0u);
    if (!given->is_object()) {
        fields.refuse("speculative", fmt::format("expected false or {{\"max_draft\": 1 to 7}}, "
                                                 "found {}",
                                                 described(*given)));
        return std::nullopt;
    }
    Fields inner(*given, "speculative");
    const auto depth = inner.integer("max_draft", 1, 7);
    if (inner.problem()) fields.refuse(*inner.problem());
    return depth ? std::optional(static_cast<uint32_t>(*depth)) : std::nullopt;
}

std::vector<std::string> read_stops(Fields& fields, std::string_view name, size_t count_max) {
    const OrderedJson* const given = fields.any(name);
    std::vector<std::string> stops;
    if (given == nullptr) return stops;
    if (!given->is_string() && !given->is_array()) {
        fields.refuse(name, fmt::format("expected a string or a list of strings, found {}",
                                        described(*given)));
        return stops;
    }
    if (given->is_array() && given->size() > count_max) {
        fields.refuse(
            name, fmt::format("expected at most {} strings, found {}", count_max, given->size()));
        return stops;
    }
    const auto take = [&](const OrderedJson& one) {
        if (!one.is_string()) {
            fields.refuse(name, fmt::format("expected strings, found {}", described(one)));
            return;
        }
        const auto& text = one.get_ref<const std::string&>();
        if (text.empty() || text.size() > kStopBytesMax) {
            fields.refuse(name, fmt::format("expected strings of 1 to {} bytes, found one of {}",
                                            kStopBytesMax, text.size()));
            return;
        }
        stops.push_back(text);
    };
    if (given->is_string()) {
        take(*given);
    } else {
        for (const OrderedJson& one : *given) take(one);
    }
    return stops;
}

std::string read_model(Fields& fields) {
    const auto model = fields.text("model");
    if (!model) fields.refuse("model", "expected the id of a model; GET /v1/models lists them");
    return model.value_or("");
}

std::optional<OrderedJson> parse_arguments(const std::string& text) {
    if (text.find_first_not_of(" \t\r\n") == text.npos) return OrderedJson::object();
    std::optional<OrderedJson> json = parse_ordered_json(text);
    if (!json || !json->is_object()) return std::nullopt;
    return json;
}

bool is_function_name(std::string_view name) {
    constexpr size_t kBytesMax = 64;
    const auto fits = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               c == '_' || c == '-' || c == '.';
    };
    return !name.empty() && name.size() <= kBytesMax && std::ranges::all_of(name, fits);
}

namespace {

void constrain(Fields& fields, std::string_view field, Constraint::OrProblem made,
               Conversation& conversation) {
    if (const auto* problem = std::get_if<std::string>(&made)) {
        fields.refuse(field, *problem);
    } else {
        conversation.constraint = std::move(std::get<Constraint>(made));
    }
}

}  // namespace

void force_call(Fields& fields, std::string_view field, std::string_view name,
                Conversation& conversation) {
    OrderedJson callable = OrderedJson::array();
    if (conversation.tools.is_array()) {
        for (const OrderedJson& tool : conversation.tools)
            if (name.empty() || tool["function"]["name"] == std::string(name))
                callable.push_back(tool);
    }
    if (callable.empty())
        return fields.refuse(
            field, name.empty() ? "a call is required without tools" : "names none of the tools");
    constrain(fields, field, Constraint::tool_call(callable), conversation);
    if (conversation.constraint)
        conversation.reply_begins = "<tool_call>" + conversation.constraint->begins;
}

void force_schema(Fields& fields, std::string_view field, const OrderedJson& schema,
                  Conversation& conversation) {
    if (conversation.tools.is_array())
        return fields.refuse(field, "is not supported beside tools that may be called", 501);
    constrain(fields, field, Constraint::json_schema(schema), conversation);
}

}  // namespace tessera
