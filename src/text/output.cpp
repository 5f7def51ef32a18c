#include "text/output.h"

#include <algorithm>

namespace tessera {
namespace {

inline constexpr std::string_view kReasoningBegin = marker_text(Marker::kReasoningBegin);
inline constexpr std::string_view kReasoningEnd = marker_text(Marker::kReasoningEnd);
inline constexpr std::string_view kCallBegin = marker_text(Marker::kCallBegin);
inline constexpr std::string_view kCallEnd = marker_text(Marker::kCallEnd);
inline constexpr std::string_view kFunctionBegin = "<function=", kFunctionEnd = "</function>";
inline constexpr std::string_view kParameterBegin = "<parameter=", kParameterEnd = "</parameter>";

inline constexpr size_t kNameBytesMax = 256;  // OpenAI allows 64 for functions

bool is_space(char c) {
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

bool may_become(std::string_view text, std::string_view tag) {
    return text.size() < tag.size() && tag.starts_with(text);
}

// Each reference is followed once: one may lead to itself.
void collect_types(const OrderedJson& schema, const OrderedJson& root,
                   std::set<std::string>& followed, std::set<std::string>& types) {
    if (!schema.is_object()) return;
    const auto to = schema.find("$ref");
    if (to != schema.end() && to->is_string()) {
        const auto& path = to->get_ref<const std::string&>();
        if (!path.starts_with("#/") || !followed.insert(path).second) return;
        try {
            collect_types(root.at(OrderedJson::json_pointer(path.substr(1))), root, followed,
                          types);
        } catch (const OrderedJson::exception&) {
            return;  // it leads nowhere
        }
    }
    const auto type = schema.find("type");
    if (type != schema.end() && type->is_string()) types.insert(type->get<std::string>());
    if (type != schema.end() && type->is_array()) {
        for (const OrderedJson& one : *type) {
            if (one.is_string()) types.insert(one.get<std::string>());
        }
    }
    for (const char* choice : {"anyOf", "oneOf", "allOf"}) {
        const auto options = schema.find(choice);
        if (options == schema.end() || !options->is_array()) continue;
        for (const OrderedJson& option : *options) collect_types(option, root, followed, types);
    }
}

// The value as JSON if it is that, else empty.
std::string json_of(const std::string& value) {
    const auto first = std::find_if_not(value.begin(), value.end(), is_space);
    const auto last = std::find_if_not(value.rbegin(), value.rend(), is_space).base();
    const std::string bare = first < last ? std::string(first, last) : std::string();
    if (bare == "True") return "true";
    if (bare == "False") return "false";
    if (bare == "None") return "null";
    return parse_ordered_json(bare) ? bare : std::string();
}

std::string json_string(std::string_view text) {
    std::string out = "\"";
    append_json_escaped(text, out);
    return out + '"';
}

}  // namespace

bool is_string_value(const OrderedJson& parameter, const OrderedJson& parameters) {
    std::set<std::string> followed, types;
    collect_types(parameter, parameters, followed, types);
    return types.empty() || types.contains("string");
}

OutputParser::OutputParser(Opening opening, const OrderedJson& tools, Calls calls)
    : state_(opening == Opening::kReasoningMayOpen ? State::kOpening : State::kContent),
      calls_(calls) {
    if (!tools.is_array()) return;
    for (const OrderedJson& tool : tools) {
        const OrderedJson& function =
            tool.is_object() && tool.contains("function") ? tool["function"] : tool;
        if (!function.is_object() || !function.contains("name") || !function["name"].is_string() ||
            !function.contains("parameters") || !function["parameters"].is_object() ||
            !function["parameters"].contains("properties") ||
            !function["parameters"]["properties"].is_object()) {
            continue;
        }
        for (const auto& [name, schema] : function["parameters"]["properties"].items()) {
            if (is_string_value(schema, function["parameters"])) continue;
            not_strings_.emplace(function["name"].get<std::string>(), name);
        }
    }
}

std::vector<OutputEvent> OutputParser::push(std::string_view text) {
    pending_ += text;
    while (step()) {
    }
    pending_.erase(0, read_);
    forgotten_ += read_;
    read_ = 0;
    return std::exchange(events_, {});
}

// Moves on by one tag or one stretch of text; false if more input is needed first.
bool OutputParser::step() {
    switch (state_) {
        case State::kReasoning:
            if (!emit_until(kReasoningEnd, Kind::kReasoning)) return false;
            state_ = State::kContent;
            return true;
        case State::kContent:
            return step_content();
        case State::kCallName:
        case State::kParameterName:
            return step_name();
        case State::kValue:
            return step_value();
        default:
            return step_tag();
    }
}

bool OutputParser::step_content() {
    if (calls_ == Calls::kAsText) {
        const std::string_view text = rest();
        read_ = pending_.size();
        emit(Kind::kContent, text);
        return false;
    }
    if (!emit_until(kCallBegin, Kind::kContent)) return false;
    held_ = kCallBegin;
    state_ = State::kCallTag;
    return true;
}

// Emits the text before `tag` and consumes both; without the tag, all that cannot be part of it.
bool OutputParser::emit_until(std::string_view tag, Kind kind) {
    const std::string_view text = rest();
    const size_t at = text.find(tag);
    if (at != std::string_view::npos) {
        read_ += at;
        emit(kind, text.substr(0, at));
        read_ += tag.size();
        return true;
    }
    size_t tail = std::min(text.size(), tag.size() - 1);
    while (tail > 0 && !may_become(text.substr(text.size() - tail), tag)) --tail;
    read_ += text.size() - tail;
    emit(kind, text.substr(0, text.size() - tail));
    return false;
}

// Of what was read last.
void OutputParser::emit(Kind kind, std::string_view text) {
    if (text.empty()) return;
    if (events_.empty() || events_.back().kind != kind) events_.push_back({kind});
    events_.back().text += text;
    events_.back().end = position();
}

// Moves space into held_; false if there is nothing behind it yet.
bool OutputParser::take_space() {
    while (read_ < pending_.size() && is_space(pending_[read_])) held_ += pending_[read_++];
    return read_ < pending_.size();
}

// The states in which a tag must come next: which tags, and where each leads.
bool OutputParser::step_tag() {
    struct Way {
        State from;
        std::string_view tag;
        State to;
    };
    static constexpr Way kWays[] = {
        {State::kOpening, kReasoningBegin, State::kReasoning},
        {State::kCallTag, kFunctionBegin, State::kCallName},
        {State::kBody, kParameterBegin, State::kParameterName},
        {State::kBody, kFunctionEnd, State::kCallClose},
        {State::kBody, kCallEnd, State::kAfterCall},
        {State::kCallClose, kCallEnd, State::kAfterCall},
        {State::kAfterCall, kCallBegin, State::kCallTag},
    };
    if (!take_space()) return false;
    bool undecided = false;
    for (const Way& way : kWays) {
        if (way.from != state_) continue;
        undecided |= may_become(rest(), way.tag);
        if (!rest().starts_with(way.tag)) continue;
        read_ += way.tag.size();
        const bool in_call = way.to == State::kCallName || way.to == State::kParameterName;
        held_ = in_call ? held_ + std::string(way.tag) : std::string();
        if (way.to == State::kCallTag) held_ = kCallBegin;
        if (state_ == State::kBody && way.to != State::kParameterName) end_call(true);
        name_.clear();
        state_ = way.to;
        return true;
    }
    if (undecided) return false;
    give_up();
    return true;
}

// A name ends at ">" and holds neither "<" nor a line break.
bool OutputParser::step_name() {
    while (read_ < pending_.size()) {
        const char c = pending_[read_];
        if (c == '>' && !name_.empty()) {
            if (state_ == State::kParameterName && parameters_.contains(name_)) break;
            ++read_;
            held_.clear();
            if (state_ == State::kParameterName) {
                begin_parameter();
                return true;
            }
            function_ = name_;
            events_.push_back({Kind::kCallBegin, name_});
            state_ = State::kBody;
            return true;
        }
        if (c == '>' || c == '<' || c == '\n' || name_.size() == kNameBytesMax) break;
        name_ += c;
        held_ += c;
        ++read_;
    }
    if (read_ == pending_.size()) return false;
    give_up();
    return true;
}

void OutputParser::begin_parameter() {
    emit(Kind::kArguments, parameters_.empty() ? "{" : ", ");
    emit(Kind::kArguments, json_string(name_) + ": ");
    parameters_.insert(name_);
    as_string_ = !not_strings_.contains({function_, name_});
    if (as_string_) emit(Kind::kArguments, "\"");
    state_ = State::kValue;
}

bool OutputParser::step_value() {
    // Read the value as if it were content, then move it where it belongs.
    std::vector<OutputEvent> outer = std::exchange(events_, {});
    const bool ended = emit_until(kParameterEnd, Kind::kContent);
    const std::string text = events_.empty() ? std::string() : std::move(events_[0].text);
    events_ = std::move(outer);
    if (as_string_) {
        std::string escaped;
        append_json_escaped(text, escaped);
        emit(Kind::kArguments, escaped);
    } else {
        value_ += text;
    }
    if (!ended) return false;
    end_value();
    state_ = State::kBody;
    return true;
}

void OutputParser::end_value() {
    if (as_string_) {
        emit(Kind::kArguments, "\"");
        return;
    }
    const std::string json = json_of(value_);
    emit(Kind::kArguments, json.empty() ? json_string(value_) : json);
    value_.clear();
}

void OutputParser::end_call(bool whole) {
    emit(Kind::kArguments, parameters_.empty() ? "{}" : "}");
    events_.push_back({Kind::kCallEnd, {}, whole});
    parameters_.clear();
}

// The grammar broke: what was held since it last held good is content, and so is what follows.
void OutputParser::give_up() {
    if (state_ == State::kBody || state_ == State::kParameterName) end_call(false);
    emit(Kind::kContent, held_);
    held_.clear();
    state_ = State::kContent;
}

std::vector<OutputEvent> OutputParser::finish() {
    const std::string last = std::exchange(pending_, {});
    forgotten_ += last.size();
    switch (state_) {
        case State::kReasoning:
            emit(Kind::kReasoning, last);
            break;
        case State::kValue:
            if (as_string_) {
                std::string escaped;
                append_json_escaped(last, escaped);
                emit(Kind::kArguments, escaped);
            }
            value_ += last;
            end_value();
            end_call(false);
            break;
        case State::kBody:
        case State::kParameterName:
            end_call(false);
            break;
        case State::kCallClose:
            break;
        case State::kAfterCall:
            emit(Kind::kContent, last.empty() ? last : held_ + last);
            break;
        case State::kOpening:
        case State::kContent:
        case State::kCallTag:
        case State::kCallName:
            emit(Kind::kContent, held_ + last);
    }
    held_.clear();
    return std::exchange(events_, {});
}

}  // namespace tessera
