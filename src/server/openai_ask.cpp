// OpenAI's requests.
#include <fmt/format.h>

#include "server/openai.h"

namespace tessera::openai {
namespace {

constexpr size_t kStopsMax = 4;
constexpr size_t kToolsMax = 1024;
constexpr double kTemperatureMax = 2;
constexpr int64_t kTokensMax = INT32_MAX;
constexpr int64_t kTopLikelyMax = Likelihood::kTopMax;

// A message's content: a string, or parts of which only texts can be read.
std::string read_content(Fields& fields) {
    const OrderedJson* const content = fields.any("content");
    if (content == nullptr) return "";
    if (content->is_string()) return content->get<std::string>();
    if (!content->is_array()) {
        fields.refuse("content",
                      "expected a string or a list of parts, found " + described(*content));
        return "";
    }
    std::string text;
    for (size_t i = 0; i < content->size(); ++i) {
        const OrderedJson& part = (*content)[i];
        const std::string path = fields.path(fmt::format("content.{}", i));
        if (!part.is_object()) {
            fields.refuse(fmt::format("content.{}", i), "expected an object");
            return "";
        }
        Fields inner(part, path);
        const std::string type = inner.text("type").value_or("");
        if (type == "text") {
            const auto words = inner.text("text");
            if (!words) inner.refuse("text", "expected a string");
            text += words.value_or("");
        } else if (type == "refusal") {
            text += inner.text("refusal").value_or("");
        } else if (type == "image_url" || type == "input_audio" || type == "file") {
            inner.refuse("type", "this model reads text, not " + type, 501);
        } else {
            inner.refuse("type", "expected \"text\"");
        }
        if (inner.problem()) {
            fields.refuse(*inner.problem());
            return "";
        }
    }
    return text;
}

void read_calls(Fields& message, Turn& turn) {
    const OrderedJson* const calls = message.list("tool_calls");
    if (calls == nullptr) return;
    for (size_t i = 0; i < calls->size(); ++i) {
        const std::string at = fmt::format("tool_calls.{}", i);
        const OrderedJson& call = (*calls)[i];
        const OrderedJson* function = nullptr;
        if (call.is_object() && call.contains("function")) function = &call["function"];
        if (function == nullptr || !function->is_object())
            return message.refuse(at, "expected an object with a \"function\"");
        Fields inner(*function, message.path(at + ".function"));
        const std::string name = inner.text("name").value_or("");
        if (!is_function_name(name)) inner.refuse("name", "expected the name of a function");
        ToolCall made{name};
        if (const auto arguments = inner.text("arguments")) {
            auto parsed = parse_arguments(*arguments);
            if (!parsed) inner.refuse("arguments", "expected a JSON object in a string");
            if (parsed) made.arguments = std::move(*parsed);
        }
        if (inner.problem()) return message.refuse(*inner.problem());
        turn.tool_calls.push_back(std::move(made));
    }
}

std::optional<Role> role_of(std::string_view name) {
    if (name == "system" || name == "developer") return Role::kSystem;
    if (name == "user") return Role::kUser;
    if (name == "assistant") return Role::kAssistant;
    if (name == "tool") return Role::kTool;
    return std::nullopt;
}

void read_message(Fields& message, std::vector<Turn>& turns) {
    const auto name = message.text("role");
    const auto role = role_of(name.value_or(""));
    if (!role) {
        return message.refuse(
            "role", "expected system, developer, user, assistant or tool" +
                        (name ? fmt::format(", found \"{:.40}\"", *name) : std::string()));
    }
    Turn turn{*role, read_content(message)};
    if (*role == Role::kAssistant) {
        auto reasoning = message.text("reasoning_content");
        if (!reasoning) reasoning = message.text("reasoning");
        // Whatever stands in the content is content: only we say what was reasoning.
        turn.reasoning = reasoning.value_or("");
        read_calls(message, turn);
    } else if (message.any("content") == nullptr) {
        message.refuse("content", "expected a string or a list of parts");
    }
    turns.push_back(std::move(turn));
}

void check_tools(Fields& fields, const OrderedJson& tools) {
    if (tools.size() > kToolsMax) {
        return fields.refuse(
            "tools", fmt::format("expected at most {} tools, found {}", kToolsMax, tools.size()));
    }
    for (size_t i = 0; i < tools.size(); ++i) {
        const std::string at = fmt::format("tools.{}", i);
        const OrderedJson& tool = tools[i];
        if (!tool.is_object()) return fields.refuse(at, "expected an object");
        Fields outer(tool, fields.path(at));
        const auto type = outer.text("type");
        if (type.value_or("") != "function") outer.refuse("type", "expected \"function\"");
        const OrderedJson* const function = outer.object("function");
        if (function == nullptr) outer.refuse("function", "expected an object");
        if (outer.problem()) return fields.refuse(*outer.problem());
        Fields inner(*function, outer.path("function"));
        if (!is_function_name(inner.text("name").value_or("")))
            inner.refuse("name", "expected 1 to 64 letters, digits, _, - or .");
        inner.text("description");
        inner.object("parameters");
        if (inner.problem()) return fields.refuse(*inner.problem());
    }
}

// Which of `tools` the model may, or has to, call.
void read_tool_choice(Fields& fields, const OrderedJson& tools, Conversation& conversation) {
    const OrderedJson* const choice = fields.any("tool_choice");
    const bool has_tools = tools.is_array() && !tools.empty();
    if (has_tools) conversation.tools = tools;
    if (choice == nullptr) return;
    std::string word = choice->is_string() ? choice->get<std::string>() : "";
    std::string name;
    if (choice->is_object()) {
        Fields inner(*choice, "tool_choice");
        const OrderedJson* const function = inner.object("function");
        if (inner.text("type").value_or("") != "function" || function == nullptr)
            inner.refuse("type", "expected a function and its name");
        if (function != nullptr)
            name = Fields(*function, "tool_choice.function").text("name").value_or("");
        if (inner.problem()) return fields.refuse(*inner.problem());
    } else if (word == "none") {
        conversation.tools = nullptr;
        return;
    } else if (word == "auto") {
        return;
    } else if (word != "required") {
        return fields.refuse("tool_choice", "expected none, auto, required or a function");
    }
    force_call(fields, "tool_choice", name, conversation);
}

bool read_thinking(Fields& fields) {
    bool thinking = false;
    if (const OrderedJson* const given = fields.object("thinking")) {
        Fields inner(*given, "thinking");
        const auto type = inner.text("type").value_or("");
        if (type != "enabled" && type != "disabled")
            inner.refuse("type", "expected enabled or disabled");
        if (inner.problem()) fields.refuse(*inner.problem());
        thinking = type == "enabled";
    }
    if (const OrderedJson* const given = fields.object("chat_template_kwargs")) {
        Fields inner(*given, "chat_template_kwargs");
        if (const auto on = inner.boolean("enable_thinking")) thinking = *on;
        if (inner.problem()) fields.refuse(*inner.problem());
    }
    return thinking;
}

void read_response_format(Fields& fields, Conversation& conversation) {
    const OrderedJson* const given = fields.object("response_format");
    if (given == nullptr) return;
    Fields inner(*given, "response_format");
    const auto type = inner.text("type").value_or("");
    if (type == "json_object") {
        static const OrderedJson kAnyObject = {{"type", "object"}};
        force_schema(inner, "type", kAnyObject, conversation);
    } else if (type == "json_schema") {
        const OrderedJson* const outer = inner.object("json_schema");
        const OrderedJson* const schema =
            outer == nullptr ? nullptr : Fields(*outer).object("schema");
        if (schema == nullptr)
            inner.refuse("json_schema", "expected an object with a \"schema\"");
        else
            force_schema(inner, "json_schema.schema", *schema, conversation);
    } else if (type != "text") {
        inner.refuse("type", "expected text, json_object or json_schema");
    }
    if (inner.problem()) fields.refuse(*inner.problem());
}

// What chat and plain completions share.
void read_shared(Fields& fields, Ask& ask) {
    ask.model = read_model(fields);
    read_sampling(fields, kTemperatureMax, ask.sampling);
    if (const auto p = fields.number("presence_penalty", -2, 2))
        ask.sampling.presence_penalty = static_cast<float>(*p);
    if (const auto p = fields.number("frequency_penalty", -2, 2))
        ask.sampling.frequency_penalty = static_cast<float>(*p);
    if (const OrderedJson* const seed = fields.any("seed");
        seed != nullptr && seed->is_number_unsigned()) {
        ask.seed = seed->get<uint64_t>();
    } else if (const auto s = fields.integer("seed", INT64_MIN, INT64_MAX)) {
        ask.seed = static_cast<uint64_t>(*s);
    }
    if (const auto n = fields.integer("max_tokens", 1, kTokensMax))
        ask.tokens_max = static_cast<uint32_t>(*n);
    ask.stops = read_stops(fields, "stop", kStopsMax);
    ask.max_draft = read_max_draft(fields);
    ask.stream = fields.boolean("stream").value_or(false);
    if (const OrderedJson* const options = fields.object("stream_options")) {
        Fields inner(*options, "stream_options");
        ask.include_usage = inner.boolean("include_usage").value_or(false);
        ask.include_rounds = inner.boolean("include_rounds").value_or(false);
        if (inner.problem()) fields.refuse(*inner.problem());
        if (!ask.stream) fields.refuse("stream_options", "only for streams");
    }
    if (fields.integer("n", 1, 128).value_or(1) != 1)
        fields.refuse("n", "more than one choice is not supported", 501);
    if (const OrderedJson* const bias = fields.object("logit_bias");
        bias != nullptr && !bias->empty())
        fields.refuse("logit_bias", "is not supported", 501);
}

}  // namespace

void read_conversation(Fields& fields, Conversation& conversation) {
    const OrderedJson* const messages = fields.list("messages");
    if (messages == nullptr || messages->empty())
        return fields.refuse("messages", "expected a list of at least one message");
    for (size_t i = 0; i < messages->size() && !fields.problem(); ++i) {
        const std::string at = fmt::format("messages.{}", i);
        if (!(*messages)[i].is_object()) return fields.refuse(at, "expected an object");
        Fields message((*messages)[i], at);
        read_message(message, conversation.turns);
        if (message.problem()) fields.refuse(*message.problem());
    }
    const OrderedJson* const tools = fields.list("tools");
    if (tools != nullptr) check_tools(fields, *tools);
    if (fields.problem()) return;
    read_tool_choice(fields, tools != nullptr ? *tools : OrderedJson(), conversation);
    // A reply that begins with a call has not reasoned before it.
    conversation.thinking = read_thinking(fields) && conversation.reply_begins.empty();
}

OrProblem<Ask> parse_chat(const OrderedJson& body, const Sampling& recommended) {
    Fields fields(body);
    Ask ask;
    ask.sampling = recommended;
    read_shared(fields, ask);
    Conversation conversation;
    read_conversation(fields, conversation);
    if (!fields.problem()) read_response_format(fields, conversation);
    ask.prompt = std::move(conversation);
    if (const auto n = fields.integer("max_completion_tokens", 1, kTokensMax))
        ask.tokens_max = static_cast<uint32_t>(*n);
    const bool likely = fields.boolean("logprobs").value_or(false);
    const auto top = fields.integer("top_logprobs", 0, kTopLikelyMax);
    if (likely) ask.likelihood_top = static_cast<uint32_t>(top.value_or(0));
    if (top && !likely) fields.refuse("top_logprobs", "needs \"logprobs\": true");
    ask.one_call = !fields.boolean("parallel_tool_calls").value_or(true);
    if (fields.any("functions") != nullptr || fields.any("function_call") != nullptr)
        fields.refuse("functions", "use tools: functions were replaced by them", 501);
    if (fields.any("audio") != nullptr) fields.refuse("audio", "this model writes text", 501);
    if (fields.problem()) return *fields.problem();
    return ask;
}

OrProblem<Ask> parse_completion(const OrderedJson& body, const Sampling& recommended) {
    Fields fields(body);
    Ask ask;
    ask.sampling = recommended;
    read_shared(fields, ask);
    const OrderedJson* const prompt = fields.any("prompt");
    if (prompt != nullptr && prompt->is_string()) {
        ask.prompt = prompt->get<std::string>();
    } else if (prompt != nullptr && prompt->is_array()) {
        std::vector<Token> tokens;
        for (const OrderedJson& one : *prompt) {
            if (!one.is_number_unsigned() || one.get<uint64_t>() > UINT32_MAX) {
                fields.refuse("prompt", "expected one string or one list of tokens, found " +
                                            described(one) + " in a list");
                break;
            }
            tokens.push_back(one.get<Token>());
        }
        ask.prompt = std::move(tokens);
    } else {
        fields.refuse("prompt", "expected a string or a list of tokens");
    }
    if (const auto top = fields.integer("logprobs", 0, 5))
        ask.likelihood_top = static_cast<uint32_t>(*top);
    if (fields.boolean("echo").value_or(false)) fields.refuse("echo", "is not supported");
    if (fields.any("suffix") != nullptr) fields.refuse("suffix", "is not supported");
    if (fields.integer("best_of", 1, 128).value_or(1) != 1)
        fields.refuse("best_of", "more than one is not supported", 501);
    if (fields.problem()) return *fields.problem();
    return ask;
}

}  // namespace tessera::openai
