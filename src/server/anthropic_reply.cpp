// Anthropic's replies: a message is a list of blocks, a stream opens and closes them one by one.
#include <iterator>

#include <fmt/format.h>

#include "server/anthropic.h"

namespace tessera::anthropic {
namespace {

using Kind = OutputEvent::Kind;

std::string_view stop_reason(ReplyEnd end) {
    switch (end) {
        case ReplyEnd::kLength:
            return "max_tokens";
        case ReplyEnd::kToolCalls:
            return "tool_use";
        case ReplyEnd::kStopString:
            return "stop_sequence";
        case ReplyEnd::kStop:
            break;
    }
    return "end_turn";
}

void put_usage(uint32_t prompt, uint32_t cached, uint32_t completion, std::string& out) {
    fmt::format_to(std::back_inserter(out),
                   R"("usage":{{"input_tokens":{},"cache_creation_input_tokens":0,)"
                   R"("cache_read_input_tokens":{},"output_tokens":{}}})",
                   prompt - cached, cached, completion);
}

class MessageFormat : public ReplyFormat {
  public:
    MessageFormat(std::string_view id, std::string_view model) : id_(id), model_(model) {}

    std::string_view ping() const override { return "event: ping\ndata: {\"type\":\"ping\"}\n\n"; }

    void open(std::string& out) override {
        out += "event: message_start\ndata: {\"type\":\"message_start\",\"message\":";
        put_head(out);
        out += R"("content":[],"stop_reason":null,"stop_sequence":null,)";
        put_usage(prompt_tokens_, 0, 0, out);
        out += "}}\n\n";
    }

    void piece(std::span<const OutputEvent> events, std::span<const TokenShown>,
               std::string& out) override {
        for (const OutputEvent& event : events) {
            switch (event.kind) {
                case Kind::kReasoning:
                    turn_to(Block::kThinking, R"({"type":"thinking","thinking":"","signature":""})",
                            out);
                    put_delta("thinking_delta", "thinking", event.text, out);
                    break;
                case Kind::kContent:
                    turn_to(Block::kText, R"({"type":"text","text":""})", out);
                    put_delta("text_delta", "text", event.text, out);
                    break;
                case Kind::kCallBegin:
                    close_block(out);
                    turn_to(Block::kCall, call_head(index_, event.text) + R"("input":{}})", out);
                    break;
                case Kind::kArguments:
                    put_delta("input_json_delta", "partial_json", event.text, out);
                    break;
                case Kind::kCallEnd:
                    close_block(out);
                    break;
            }
        }
    }

    void close(const ReplySummary& summary, std::string& out) override {
        close_block(out);
        out += "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{";
        put_end(summary, out);
        out += "},";
        put_usage(summary.prompt_tokens, summary.cached_tokens, summary.completion_tokens, out);
        out += ',';
        put_measurements(summary, out);
        out += "}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    }

    void fail(const ApiProblem& problem, std::string& out) override {
        out += "event: error\ndata: " + error_body(problem, id_) + "\n\n";
    }

    std::string problem(const ApiProblem& problem) const override {
        return error_body(problem, id_);
    }

    void collect(std::span<const OutputEvent> events, std::span<const TokenShown>) override {
        for (const OutputEvent& event : events) {
            if (event.kind == Kind::kCallEnd) continue;
            const Block wanted = event.kind == Kind::kReasoning ? Block::kThinking
                                 : event.kind == Kind::kContent ? Block::kText
                                                                : Block::kCall;
            const bool fresh =
                blocks_.empty() || blocks_.back().kind != wanted || event.kind == Kind::kCallBegin;
            if (fresh) blocks_.push_back({wanted, "", ""});
            std::string& into =
                event.kind == Kind::kCallBegin ? blocks_.back().name : blocks_.back().text;
            into += event.text;
        }
    }

    std::string whole(const ReplySummary& summary) override {
        std::string out;
        put_head(out);
        out += R"("content":[)";
        for (size_t i = 0; i < blocks_.size(); ++i) {
            if (i > 0) out += ',';
            put_block(i, blocks_[i], out);
        }
        out += "],";
        put_end(summary, out);
        out += ',';
        put_usage(summary.prompt_tokens, summary.cached_tokens, summary.completion_tokens, out);
        out += ',';
        put_measurements(summary, out);
        return out + '}';
    }

  private:
    enum class Block : uint8_t { kNone, kThinking, kText, kCall };
    struct Made {
        Block kind;
        std::string name, text;  // of a call: the function and its arguments
    };

    void put_head(std::string& out) const {
        fmt::format_to(std::back_inserter(out),
                       R"({{"id":"msg_{}","type":"message","role":"assistant","model":)", id_);
        put_string(out, model_);
        out += ',';
    }

    // Up to the input.
    std::string call_head(size_t index, std::string_view name) const {
        std::string out =
            fmt::format(R"({{"type":"tool_use","id":"toolu_{}_{}","name":)", id_, index);
        put_string(out, name);
        return out + ',';
    }

    void put_block(size_t index, const Made& block, std::string& out) const {
        if (block.kind == Block::kCall) {
            // The parser of replies writes arguments as JSON, whatever the model did.
            out += call_head(index, block.name) + R"("input":)" +
                   (block.text.empty() ? "{}" : block.text) + '}';
            return;
        }
        const bool thinking = block.kind == Block::kThinking;
        out += thinking ? R"({"type":"thinking","signature":"","thinking":)"
                        : R"({"type":"text","text":)";
        put_string(out, block.text);
        out += '}';
    }

    static void put_end(const ReplySummary& summary, std::string& out) {
        fmt::format_to(std::back_inserter(out), R"("stop_reason":"{}","stop_sequence":)",
                       stop_reason(summary.end));
        put_string_or_null(out, summary.end == ReplyEnd::kStopString
                                    ? std::string_view(summary.stop_string)
                                    : std::string_view());
    }

    void turn_to(Block wanted, std::string_view start, std::string& out) {
        if (open_ == wanted) return;
        close_block(out);
        open_ = wanted;
        fmt::format_to(std::back_inserter(out),
                       "event: content_block_start\ndata: "
                       "{{\"type\":\"content_block_start\",\"index\":{},\"content_block\":{}}}\n\n",
                       index_, start);
    }

    void put_delta(std::string_view type, std::string_view field, std::string_view text,
                   std::string& out) const {
        fmt::format_to(
            std::back_inserter(out),
            "event: content_block_delta\ndata: "
            "{{\"type\":\"content_block_delta\",\"index\":{},\"delta\":{{\"type\":\"{}\","
            "\"{}\":",
            index_, type, field);
        put_string(out, text);
        out += "}}\n\n";
    }

    void close_block(std::string& out) {
        if (open_ == Block::kNone) return;
        fmt::format_to(std::back_inserter(out),
                       "event: content_block_stop\ndata: "
                       "{{\"type\":\"content_block_stop\",\"index\":{}}}\n\n",
                       index_++);
        open_ = Block::kNone;
    }

    const std::string id_, model_;
    Block open_ = Block::kNone;  // of the stream
    size_t index_ = 0;
    std::vector<Made> blocks_;  // of a whole reply
};

}  // namespace

std::unique_ptr<ReplyFormat> message_format(std::string_view id, std::string_view model) {
    return std::make_unique<MessageFormat>(id, model);
}

std::string error_body(const ApiProblem& problem, std::string_view request_id) {
    std::string out = R"({"type":"error","error":{"type":)";
    put_string(out, error_type(problem.status));
    out += R"(,"message":)";
    put_string(out, repair_utf8(problem.message));
    out += R"(,"param":)";
    put_string_or_null(out, problem.param);
    out += R"(,"code":)";
    put_string_or_null(out, problem.code);
    out += R"(},"request_id":)";
    put_string_or_null(out, request_id);
    return out + '}';
}

}  // namespace tessera::anthropic
