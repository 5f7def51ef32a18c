#include "text/chat.h"

#include <algorithm>
#include <initializer_list>

#include "base/error.h"

namespace tessera {
namespace {

inline constexpr std::string_view kDefaultSystem =
    "You are MiMo, a helpful AI assistant engineered by Xiaomi.";

inline constexpr std::string_view kToolsBegin =
    "\n\n# Tools\n\nThese functions are at your disposal; call any of them when it helps with the "
    "request:\n\n<tools>";

inline constexpr std::string_view kToolsEnd = R"(
</tools>

Write each call as its name and its arguments, in exactly this form:
<tool_call>
<function=name_of_the_function>
<parameter=first_parameter>its value</parameter>
<parameter=second_parameter>a value may
run over several lines</parameter>
</function>
</tool_call>

<IMPORTANT>
- A call is one <function=...></function> block inside <tool_call></tool_call>.
- Never write a call inside <think></think>.
- What stands between parameter tags is taken as it is, spaces and line breaks included.
</IMPORTANT>)";

// str.strip(): Python's whitespace, which has four control characters more than Unicode's.
bool is_python_space(std::string_view text, size_t at, size_t& bytes) {
    static constexpr std::string_view kSpaces[] = {
        "\t",     "\n",     "\v",     "\f",     "\r",     "\x1c",   "\x1d",   "\x1e",
        "\x1f",   " ",      "\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002",
        "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a",
        "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};
    for (const std::string_view space : kSpaces) {
        if (text.substr(at, space.size()) != space) continue;
        bytes = space.size();
        return true;
    }
    return false;
}

std::string_view strip(std::string_view text) {
    size_t bytes = 0;
    while (!text.empty() && is_python_space(text, 0, bytes)) text.remove_prefix(bytes);
    while (!text.empty()) {
        size_t begin = text.size() - 1;
        while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xc0) == 0x80) --begin;
        if (!is_python_space(text, begin, bytes)) break;
        text.remove_suffix(text.size() - begin);
    }
    return text;
}

// object[key], or null where either is missing.
const OrderedJson* get(const OrderedJson& object, std::string_view key) {
    if (!object.is_object()) return nullptr;
    const auto found = object.find(key);
    return found == object.end() ? nullptr : &*found;
}

class Prompt {
  public:
    void marker(Marker marker) { pieces_.push_back({marker, {}}); }

    // Somebody's text: never a marker.
    void text(std::string_view text) {
        if (text.empty()) return;
        if (pieces_.empty() || pieces_.back().marker) pieces_.emplace_back();
        pieces_.back().text += text;
    }

    // The template's own words: the markers in them are markers.
    void words(std::string_view words) {
        while (!words.empty()) {
            size_t first = words.size(), which = 0;
            for (size_t i = 0; i < kMarkerText.size(); ++i) {
                const size_t at = words.find(kMarkerText[i]);
                if (at < first) first = at, which = i;
            }
            text(words.substr(0, first));
            if (first == words.size()) return;
            marker(static_cast<Marker>(which));
            words.remove_prefix(first + kMarkerText[which].size());
        }
    }

    void turn_begin(std::string_view role) {
        marker(Marker::kTurnBegin);
        text(role);
        text("\n");
    }

    void element(std::string_view name, std::string_view value) {
        text("\n<");
        text(name);
        text(">");
        text(value);
        text("</");
        text(name);
        text(">");
    }

    std::vector<Piece> take() { return std::move(pieces_); }

  private:
    std::vector<Piece> pieces_;
};

void description_of(Prompt& prompt, const OrderedJson& schema) {
    const OrderedJson* description = get(schema, "description");
    if (description == nullptr) return;
    prompt.element("description", strip(python_text(*description)));
}

void other_keys(Prompt& prompt, const OrderedJson& schema,
                std::initializer_list<std::string_view> done) {
    if (!schema.is_object()) return;
    for (const auto& [key, value] : schema.items()) {
        if (std::find(done.begin(), done.end(), key) != done.end()) continue;
        prompt.element(key, python_text(value));
    }
}

void parameter(Prompt& prompt, std::string_view name, const OrderedJson& schema) {
    prompt.text("\n<parameter>");
    prompt.element("name", name);
    if (const OrderedJson* type = get(schema, "type")) prompt.element("type", python_text(*type));
    description_of(prompt, schema);
    other_keys(prompt, schema, {"name", "type", "description"});
    prompt.text("\n</parameter>");
}

void function(Prompt& prompt, const OrderedJson& tool) {
    prompt.text("\n<function>");
    const OrderedJson* name = get(tool, "name");
    prompt.element("name", name == nullptr ? "" : python_text(*name));
    description_of(prompt, tool);
    prompt.text("\n<parameters>");
    if (const OrderedJson* schema = get(tool, "parameters")) {
        const OrderedJson* properties = get(*schema, "properties");
        if (properties != nullptr && properties->is_object()) {
            for (const auto& [key, fields] : properties->items()) parameter(prompt, key, fields);
        }
        other_keys(prompt, *schema, {"type", "properties"});
    }
    prompt.text("\n</parameters>");
    other_keys(prompt, tool, {"type", "name", "description", "parameters"});
    prompt.text("\n</function>");
}

void system_turn(Prompt& prompt, std::string_view content, const OrderedJson& tools) {
    prompt.turn_begin("system");
    prompt.text(content);
    if (tools.is_array() && !tools.empty()) {
        prompt.words(kToolsBegin);
        for (const OrderedJson& tool : tools) {
            const OrderedJson* inner = get(tool, "function");
            function(prompt, inner == nullptr ? tool : *inner);
        }
        prompt.words(kToolsEnd);
    }
    prompt.marker(Marker::kTurnEnd);
}

void call(Prompt& prompt, const ToolCall& tool_call) {
    prompt.marker(Marker::kCallBegin);
    prompt.text("\n<function=");
    prompt.text(tool_call.name);
    prompt.text(">\n");
    if (tool_call.arguments.is_object()) {
        for (const auto& [name, value] : tool_call.arguments.items()) {
            prompt.text("<parameter=");
            prompt.text(name);
            prompt.text(">");
            prompt.text(python_text(value));
            prompt.text("</parameter>\n");
        }
    }
    prompt.text("</function>\n");
    prompt.marker(Marker::kCallEnd);
}

void assistant_turn(Prompt& prompt, const Turn& turn, bool keep_reasoning) {
    constexpr std::string_view kOpen = marker_text(Marker::kReasoningBegin);
    constexpr std::string_view kClose = marker_text(Marker::kReasoningEnd);
    std::string_view content = turn.content;
    std::string_view reasoning = turn.reasoning ? std::string_view(*turn.reasoning) : "";
    if (!turn.reasoning && content.find(kClose) != std::string_view::npos) {
        reasoning = content.substr(0, content.find(kClose));
        const size_t open = reasoning.rfind(kOpen);
        if (open != std::string_view::npos) reasoning.remove_prefix(open + kOpen.size());
        content.remove_prefix(content.rfind(kClose) + kClose.size());
    }
    prompt.turn_begin("assistant");
    prompt.marker(Marker::kReasoningBegin);
    if (keep_reasoning) prompt.text(reasoning);
    prompt.marker(Marker::kReasoningEnd);
    prompt.text(content);
    for (const ToolCall& tool_call : turn.tool_calls) call(prompt, tool_call);
    prompt.marker(Marker::kTurnEnd);
}

// Neighbouring results share one turn.
void result(Prompt& prompt, const Turn& turn, bool first, bool last) {
    if (first) prompt.turn_begin("tool");
    prompt.marker(Marker::kResultBegin);
    prompt.text("\n");
    prompt.text(turn.content);
    prompt.text("\n");
    prompt.marker(Marker::kResultEnd);
    prompt.text("\n");
    if (last) prompt.marker(Marker::kTurnEnd);
}

}  // namespace

std::vector<Piece> render(std::span<const Turn> turns, const OrderedJson& tools,
                          const RenderOptions& options) {
    Prompt prompt;
    const bool has_system = !turns.empty() && turns[0].role == Role::kSystem;
    system_turn(prompt, has_system ? std::string_view(turns[0].content) : kDefaultSystem, tools);
    if (has_system) turns = turns.subspan(1);
    size_t after_last_user = turns.size();
    while (after_last_user > 0 && turns[after_last_user - 1].role != Role::kUser) --after_last_user;
    for (size_t i = 0; i < turns.size(); ++i) {
        const Turn& turn = turns[i];
        const auto is_tool = [&](size_t at) {
            return at < turns.size() && turns[at].role == Role::kTool;
        };
        if (turn.role == Role::kAssistant) {
            assistant_turn(prompt, turn, options.keep_all_reasoning || i >= after_last_user);
        } else if (turn.role == Role::kTool) {
            result(prompt, turn, i == 0 || !is_tool(i - 1), !is_tool(i + 1));
        } else {
            prompt.turn_begin(turn.role == Role::kUser ? "user" : "system");
            prompt.text(turn.content);
            prompt.marker(Marker::kTurnEnd);
        }
    }
    if (options.add_generation_prompt) {
        prompt.turn_begin("assistant");
        if (!options.enable_thinking) prompt.words("<think></think>");
        prompt.words(options.reply_begins);
    }
    return prompt.take();
}

std::string to_text(std::span<const Piece> prompt) {
    std::string text;
    for (const Piece& piece : prompt) {
        text += piece.marker ? marker_text(*piece.marker) : std::string_view(piece.text);
    }
    return text;
}

Opening opening_of(std::span<const Piece> prompt) {
    const bool closed = !prompt.empty() && prompt.back().marker == Marker::kReasoningEnd;
    return closed ? Opening::kReasoningClosed : Opening::kReasoningMayOpen;
}

ChatEncoder::ChatEncoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {
    for (size_t i = 0; i < kMarkerText.size(); ++i) {
        const auto id = tokenizer.added_id_of(kMarkerText[i]);
        if (!id) {
            fail("the tokenizer has no added token {}, which the chat dialect needs",
                 kMarkerText[i]);
        }
        ids_[i] = *id;
    }
}

std::vector<uint32_t> ChatEncoder::encode(std::span<const Piece> prompt) const {
    std::vector<uint32_t> ids;
    for (const Piece& piece : prompt) {
        if (piece.marker) {
            ids.push_back(id_of(*piece.marker));
            continue;
        }
        const auto text = tokenizer_->encode(piece.text, Specials::kAsText);
        ids.insert(ids.end(), text.begin(), text.end());
    }
    return ids;
}

}  // namespace tessera
