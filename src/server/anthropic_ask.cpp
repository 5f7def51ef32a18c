// Anthropic's requests.
#include <fmt/format.h>

#include "server/anthropic.h"

namespace tessera::anthropic {
namespace {

constexpr size_t kStopsMax = 4;
constexpr size_t kToolsMax = 1024;
constexpr double kTemperatureMax = 1;
constexpr int64_t kTokensMax = INT32_MAX;

// Calls `block(fields, type)` for each block of a list, or for a string as if it were one of text.
template <typename Block>
void each_block(Fields& owner, std::string_view name, const Block& block) {
    const OrderedJson* const content = owner.any(name);
    if (content == nullptr) return;
    if (content->is_string()) {
        const OrderedJson one = {{"type", "text"}, {"text", *content}};
        Fields fields(one, owner.path(name));
        return block(fields, "text");
    }
    if (!content->is_array())
        return owner.refuse(name,
                            "expected a string or a list of blocks, found " + described(*content));
    for (size_t i = 0; i < content->size(); ++i) {
        const std::string at = fmt::format("{}.{}", name, i);
        if (!(*content)[i].is_object()) return owner.refuse(at, "expected an object");
        Fields fields((*content)[i], owner.path(at));
        const std::string type = fields.text("type").value_or("");
        block(fields, type);
        if (fields.problem()) return owner.refuse(*fields.problem());
    }
}

std::string text_of(Fields& fields, std::string_view name) {
    const auto text = fields.text(name);
    if (!text) fields.refuse(name, "expected a string");
    return text.value_or("");
}

void refuse_block(Fields& fields, std::string_view type) {
    if (type == "image" || type == "document") {
        fields.refuse("type", fmt::format("this model reads text, no {}", type), 501);
    } else {
        fields.refuse("type", fmt::format("\"{:.40}\" does not belong here", type));
    }
}

std::string texts(Fields& owner, std::string_view name) {
    std::string all;
    each_block(owner, name, [&](Fields& fields, std::string_view type) {
        if (type != "text") return refuse_block(fields, type);
        all += text_of(fields, "text");
    });
    return all;
}

// Results of tools become turns of their own, before what the user says beside them.
void read_user(Fields& message, std::vector<Turn>& turns) {
    Turn said{Role::kUser, ""};
    bool says = false;
    each_block(message, "content", [&](Fields& fields, std::string_view type) {
        if (type == "text") {
            says = true;
            said.content += text_of(fields, "text");
        } else if (type == "tool_result") {
            text_of(fields, "tool_use_id");
            fields.boolean("is_error");
            turns.push_back({Role::kTool, texts(fields, "content")});
        } else {
            refuse_block(fields, type);
        }
    });
    if (says) turns.push_back(std::move(said));
}

void read_assistant(Fields& message, std::vector<Turn>& turns) {
    Turn turn{Role::kAssistant, ""};
    turn.reasoning = "";
    each_block(message, "content", [&](Fields& fields, std::string_view type) {
        if (type == "text") {
            turn.content += text_of(fields, "text");
        } else if (type == "thinking") {
            *turn.reasoning += text_of(fields, "thinking");
        } else if (type == "redacted_thinking") {
            // Nothing of it can be read.
        } else if (type == "tool_use") {
            ToolCall call{text_of(fields, "name")};
            if (!is_function_name(call.name))
                fields.refuse("name", "expected the name of a function");
            if (const OrderedJson* const input = fields.object("input")) call.arguments = *input;
            turn.tool_calls.push_back(std::move(call));
        } else {
            refuse_block(fields, type);
        }
    });
    turns.push_back(std::move(turn));
}

void read_messages(Fields& fields, std::vector<Turn>& turns) {
    const OrderedJson* const messages = fields.list("messages");
    if (messages == nullptr || messages->empty())
        return fields.refuse("messages", "expected a list of at least one message");
    std::string role;
    for (size_t i = 0; i < messages->size() && !fields.problem(); ++i) {
        const std::string at = fmt::format("messages.{}", i);
        if (!(*messages)[i].is_object()) return fields.refuse(at, "expected an object");
        Fields message((*messages)[i], at);
        role = message.text("role").value_or("");
        if (message.any("content") == nullptr)
            message.refuse("content", "expected a string or a list of blocks");
        if (role == "user") {
            read_user(message, turns);
        } else if (role == "assistant") {
            read_assistant(message, turns);
        } else {
            message.refuse("role", "expected user or assistant");
        }
        if (message.problem()) fields.refuse(*message.problem());
    }
    if (role == "assistant")
        fields.refuse("messages",
                      "the last message is the assistant's: to continue it is not supported", 501);
    if (turns.empty()) fields.refuse("messages", "say nothing");
}

// Into OpenAI's form, which is what the dialect renders.
OrderedJson read_tools(Fields& fields) {
    const OrderedJson* const given = fields.list("tools");
    if (given == nullptr || given->empty()) return nullptr;
    if (given->size() > kToolsMax) {
        fields.refuse("tools",
                      fmt::format("expected at most {} tools, found {}", kToolsMax, given->size()));
        return nullptr;
    }
    OrderedJson tools = OrderedJson::array();
    for (size_t i = 0; i < given->size() && !fields.problem(); ++i) {
        const std::string at = fmt::format("tools.{}", i);
        if (!(*given)[i].is_object()) {
            fields.refuse(at, "expected an object");
            break;
        }
        Fields tool((*given)[i], at);
        const std::string type = tool.text("type").value_or("custom");
        if (type != "custom")
            tool.refuse("type", fmt::format("{:.40} is not supported", type), 501);
        const std::string name = tool.text("name").value_or("");
        if (!is_function_name(name))
            tool.refuse("name", "expected 1 to 64 letters, digits, _, - or .");
        OrderedJson function = {{"name", name}};
        if (const auto description = tool.text("description"))
            function["description"] = *description;
        const OrderedJson* const schema = tool.object("input_schema");
        if (schema == nullptr) tool.refuse("input_schema", "expected an object");
        if (schema != nullptr) function["parameters"] = *schema;
        if (tool.problem()) fields.refuse(*tool.problem());
        tools.push_back({{"type", "function"}, {"function", std::move(function)}});
    }
    return tools;
}

void read_tool_choice(Fields& fields, Ask& ask, Conversation& conversation) {
    const OrderedJson* const given = fields.object("tool_choice");
    if (given == nullptr) return;
    Fields choice(*given, "tool_choice");
    const std::string type = choice.text("type").value_or("");
    if (type == "none") {
        conversation.tools = nullptr;
    } else if (type == "any" || type == "tool") {
        const std::string name = type == "any" ? "" : choice.text("name").value_or("");
        if (type == "tool" && name.empty()) choice.refuse("name", "expected the name of a tool");
        if (!choice.problem()) force_call(choice, "name", name, conversation);
    } else if (type != "auto") {
        choice.refuse("type", "expected auto, any, tool or none");
    }
    ask.one_call = choice.boolean("disable_parallel_tool_use").value_or(false);
    if (choice.problem()) fields.refuse(*choice.problem());
}

bool read_thinking(Fields& fields) {
    const OrderedJson* const given = fields.object("thinking");
    if (given == nullptr) return false;
    Fields thinking(*given, "thinking");
    const std::string type = thinking.text("type").value_or("");
    if (type != "enabled" && type != "disabled" && type != "adaptive")
        thinking.refuse("type", "expected enabled, adaptive or disabled");
    thinking.integer("budget_tokens", 1, kTokensMax);
    if (thinking.problem()) fields.refuse(*thinking.problem());
    return type != "disabled";
}

// "output_config": {"format": {"type": "json_schema", "schema": …}}; older clients have the inner
// part as "output_format".
void read_output_format(Fields& fields, Conversation& conversation) {
    std::string path = "output_format";
    const OrderedJson* format = fields.object(path);
    if (const OrderedJson* const config = fields.object("output_config")) {
        path = "output_config.format";
        Fields inner(*config, "output_config");
        format = inner.object("format");
        if (inner.problem()) fields.refuse(*inner.problem());
    }
    if (format == nullptr) return;
    Fields inner(*format, path);
    const OrderedJson* const schema = inner.object("schema");
    if (inner.text("type").value_or("") != "json_schema") {
        inner.refuse("type", "expected json_schema");
    } else if (schema == nullptr) {
        inner.refuse("schema", "expected a schema, an object");
    } else {
        force_schema(inner, "schema", *schema, conversation);
    }
    if (inner.problem()) fields.refuse(*inner.problem());
}

}  // namespace

OrProblem<Ask> parse_message(const OrderedJson& body, const Sampling& recommended,
                             Purpose purpose) {
    Fields fields(body);
    Ask ask;
    ask.sampling = recommended;
    ask.model = read_model(fields);
    Conversation conversation;
    const std::string system = texts(fields, "system");
    if (!system.empty()) conversation.turns.push_back({Role::kSystem, system});
    std::vector<Turn> turns;
    read_messages(fields, turns);
    conversation.turns.insert(conversation.turns.end(), std::make_move_iterator(turns.begin()),
                              std::make_move_iterator(turns.end()));
    conversation.tools = read_tools(fields);
    if (!fields.problem()) read_tool_choice(fields, ask, conversation);
    conversation.thinking = read_thinking(fields) && conversation.reply_begins.empty();
    if (!fields.problem()) read_output_format(fields, conversation);
    ask.prompt = std::move(conversation);

    const auto tokens = fields.integer("max_tokens", 1, kTokensMax);
    if (tokens) ask.tokens_max = static_cast<uint32_t>(*tokens);
    if (!tokens && purpose == Purpose::kAnswer)
        fields.refuse("max_tokens", "expected the tokens of the answer at most");
    read_sampling(fields, kTemperatureMax, ask.sampling);
    if (const OrderedJson* const stops = fields.any("stop_sequences");
        stops != nullptr && !stops->is_array())
        fields.refuse("stop_sequences", "expected a list of strings");
    ask.stops = read_stops(fields, "stop_sequences", kStopsMax);
    ask.max_draft = read_max_draft(fields);
    ask.stream = fields.boolean("stream").value_or(false);
    if (fields.problem()) return *fields.problem();
    return ask;
}

}  // namespace tessera::anthropic
