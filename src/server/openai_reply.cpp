// OpenAI's replies. A chunk is put together from strings: a JSON library would take longer for it
// than a small model takes for a token.
#include <algorithm>
#include <iterator>

#include <fmt/format.h>

#include "server/openai.h"

namespace tessera::openai {
namespace {

using Kind = OutputEvent::Kind;

std::string_view finish_reason(ReplyEnd end) {
    switch (end) {
        case ReplyEnd::kLength:
            return "length";
        case ReplyEnd::kToolCalls:
            return "tool_calls";
        case ReplyEnd::kStop:
        case ReplyEnd::kStopString:
            break;
    }
    return "stop";
}

void put_usage(const ReplySummary& s, std::string& out) {
    fmt::format_to(std::back_inserter(out),
                   R"("usage":{{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},)"
                   R"("prompt_tokens_details":{{"cached_tokens":{}}},)"
                   R"("completion_tokens_details":{{"reasoning_tokens":{}}}}})",
                   s.prompt_tokens, s.completion_tokens, s.prompt_tokens + s.completion_tokens,
                   s.cached_tokens, s.reasoning_tokens);
}

void put_token(std::string_view bytes, float log_probability, std::string& out) {
    out += R"({"token":)";
    put_string(out, repair_utf8(bytes));
    // JSON has no infinity; a token that cannot be has this in OpenAI's replies.
    fmt::format_to(std::back_inserter(out), R"(,"logprob":{:.6f},"bytes":[)",
                   std::max(log_probability, -9999.0f));
    for (size_t i = 0; i < bytes.size(); ++i) {
        fmt::format_to(std::back_inserter(out), "{}{}", i > 0 ? "," : "",
                       static_cast<unsigned>(static_cast<unsigned char>(bytes[i])));
    }
    out += ']';
}

// Entries of a chat's logprobs.content.
void put_tokens(std::span<const TokenShown> tokens, std::string& out) {
    for (size_t i = 0; i < tokens.size(); ++i) {
        const TokenShown& token = tokens[i];
        if (!out.empty() && out.back() == '}') out += ',';
        put_token(token.bytes, token.likelihood.log_probability, out);
        out += R"(,"top_logprobs":[)";
        for (uint32_t k = 0; k < token.likelihood.top_count; ++k) {
            if (k > 0) out += ',';
            put_token(token.top_bytes[k], token.likelihood.top[k].log_probability, out);
            out += '}';
        }
        out += "]}";
    }
}

std::string_view origin_name(Origin origin) {
    switch (origin) {
        case Origin::kModel:
            return "model";
        case Origin::kDrafter:
            return "drafter";
        case Origin::kSuffix:
            return "suffix";
        case Origin::kForced:
            return "forced";
        case Origin::kCorrection:
            return "correction";
        case Origin::kBonus:
            break;
    }
    return "bonus";
}

std::string_view drafts_name(Round::Drafts drafts) {
    switch (drafts) {
        case Round::Drafts::kDrafter:
            return "drafter";
        case Round::Drafts::kSuffix:
            return "suffix";
        case Round::Drafts::kForced:
            return "forced";
        case Round::Drafts::kNone:
            break;
    }
    return "none";
}

// An entry of speculation.rounds.
void put_round(const Round& round, std::string& out) {
    fmt::format_to(std::back_inserter(out), R"({}{{"drafts":"{}","verified":{},"accepted":{}}})",
                   out.empty() ? "" : ",", drafts_name(round.drafts), round.verified,
                   round.accepted);
}

class OpenAiFormat : public ReplyFormat {
  public:
    OpenAiFormat(const ReplyHead& head, std::string_view prefix, std::string_view object,
                 std::string_view chunk_object)
        : head_(head) {
        const auto fields = [&](std::string_view what) {
            std::string text = fmt::format(R"({{"id":"{}{}","object":"{}","created":{},"model":)",
                                           prefix, head.id, what, head.created);
            put_string(text, head.model);
            return text;
        };
        object_ = fields(object);
        chunk_ = "data: " + fields(chunk_object);
        usage_null_ = head.include_usage ? R"(,"usage":null)" : "";
    }

    std::string_view ping() const override { return ": ping\n\n"; }

    void close(const ReplySummary& summary, std::string& out) override {
        put_finish(summary, out);
        if (head_.include_usage) {
            out += "\n\n";
            out += chunk_ + R"(,"choices":[],)";
            put_usage(summary, out);
        } else {
            out.pop_back();  // the brace: measurements belong to the last chunk
        }
        out += ',';
        put_measurements(summary, out);
        out += "}\n\ndata: [DONE]\n\n";
    }

    void fail(const ApiProblem& problem, std::string& out) override {
        out += "data: " + error_body(problem) + "\n\n";
    }

    std::string problem(const ApiProblem& problem) const override { return error_body(problem); }

    void origins(std::span<const Round> rounds, std::span<const TextSpan> spans) override {
        if (!head_.include_rounds) return;
        for (const Round& round : rounds) put_round(round, rounds_waiting_);
        spans_.assign(spans.begin(), spans.end());
        span_ = 0;
    }

  protected:
    // How the `text` of a chunk came about, and the rounds since the last chunk.
    void put_speculation(std::string_view text, std::string& out) {
        if (text.empty() && rounds_waiting_.empty()) return;
        out += R"(,"speculation":{"rounds":[)" + rounds_waiting_ + R"(],"tokens":[)";
        rounds_waiting_.clear();
        for (size_t at = 0; at < text.size(); at += spans_[span_++].bytes) {
            out += at > 0 ? R"(,{"text":)" : R"({"text":)";
            put_string(out, text.substr(at, spans_[span_].bytes));
            fmt::format_to(std::back_inserter(out), R"(,"from":"{}"}})",
                           origin_name(spans_[span_].origin));
        }
        out += "]}";
    }

    // The chunk with the finish_reason, without its line ends.
    virtual void put_finish(const ReplySummary& summary, std::string& out) = 0;

    void put_end(const ReplySummary& summary, std::string& out) const {
        put_usage(summary, out);
        out += ',';
        put_measurements(summary, out);
        out += '}';
    }

    const ReplyHead head_;
    std::string object_, chunk_, usage_null_;  // what each begins with, and may end with

  private:
    std::string rounds_waiting_;  // that no chunk has shown yet
    std::vector<TextSpan> spans_;
    size_t span_ = 0;  // the next of them
};

// ------------------------------------------------------------------ chat

class ChatFormat : public OpenAiFormat {
  public:
    explicit ChatFormat(const ReplyHead& head)
        : OpenAiFormat(head, "chatcmpl-", "chat.completion", "chat.completion.chunk") {}

    void open(std::string& out) override {
        begin_delta(out);
        out += R"("role":"assistant","content":"")";
        end_delta(out);
    }

    void piece(std::span<const OutputEvent> events, std::span<const TokenShown> tokens,
               std::string& out) override {
        put_tokens(tokens, waiting_);
        for (const OutputEvent& event : events) {
            if (event.kind == Kind::kCallEnd) continue;
            begin_delta(out);
            put_delta(event, out);
            const bool shown = event.kind == Kind::kReasoning || event.kind == Kind::kContent;
            end_delta(out, "", shown ? std::string_view(event.text) : "");
        }
    }

    void collect(std::span<const OutputEvent> events, std::span<const TokenShown> tokens) override {
        put_tokens(tokens, waiting_);
        for (const OutputEvent& event : events) {
            switch (event.kind) {
                case Kind::kReasoning:
                    reasoning_ += event.text;
                    break;
                case Kind::kContent:
                    content_ += event.text;
                    break;
                case Kind::kCallBegin:
                    calls_.push_back({event.text, ""});
                    break;
                case Kind::kArguments:
                    calls_.back().arguments += event.text;
                    break;
                case Kind::kCallEnd:
                    break;
            }
        }
    }

    std::string whole(const ReplySummary& summary) override {
        std::string out =
            object_ + R"(,"choices":[{"index":0,"message":{"role":"assistant","content":)";
        if (content_.empty() && !calls_.empty()) {
            out += "null";
        } else {
            put_string(out, content_);
        }
        out += R"(,"refusal":null)";
        if (!reasoning_.empty()) {
            out += R"(,"reasoning_content":)";
            put_string(out, reasoning_);
        }
        for (size_t i = 0; i < calls_.size(); ++i) {
            out += i == 0 ? R"(,"tool_calls":[)" : ",";
            put_call_head(i, calls_[i].name, out);
            put_string(out, calls_[i].arguments);
            out += "}}";
        }
        if (!calls_.empty()) out += ']';
        out += R"(},"logprobs":)";
        out += head_.likelihoods ? R"({"content":[)" + waiting_ + R"(],"refusal":null})" : "null";
        fmt::format_to(std::back_inserter(out), R"(,"finish_reason":"{}"}}],)",
                       finish_reason(summary.end));
        put_end(summary, out);
        return out;
    }

  protected:
    void put_finish(const ReplySummary& summary, std::string& out) override {
        begin_delta(out);
        end_delta(out, finish_reason(summary.end));
        out.resize(out.size() - 2);  // line ends
    }

  private:
    struct Call {
        std::string name, arguments;
    };

    void begin_delta(std::string& out) const {
        out += chunk_;
        out += R"(,"choices":[{"index":0,"delta":{)";
    }

    // `text`: that the delta shows.
    void end_delta(std::string& out, std::string_view reason = "", std::string_view text = "") {
        out += '}';
        if (head_.likelihoods) {
            out += R"(,"logprobs":)";
            out +=
                waiting_.empty() ? "null" : R"({"content":[)" + waiting_ + R"(],"refusal":null})";
            waiting_.clear();
        }
        out += R"(,"finish_reason":)";
        put_string_or_null(out, reason);
        out += "}]";
        if (head_.include_rounds) put_speculation(text, out);
        out += usage_null_;
        out += "}\n\n";
    }

    void put_delta(const OutputEvent& event, std::string& out) {
        switch (event.kind) {
            case Kind::kReasoning:
                out += R"("reasoning_content":)";
                return put_string(out, event.text);
            case Kind::kContent:
                out += R"("content":)";
                return put_string(out, event.text);
            case Kind::kCallBegin:
                out += R"("tool_calls":[)";
                put_call_head(calls_streamed_++, event.text, out);
                out += R"(""}}])";
                return;
            case Kind::kArguments:
                fmt::format_to(std::back_inserter(out),
                               R"("tool_calls":[{{"index":{},"function":{{"arguments":)",
                               calls_streamed_ - 1);
                put_string(out, event.text);
                out += "}}]";
                return;
            case Kind::kCallEnd:
                return;
        }
    }

    // Up to the value of "arguments".
    void put_call_head(size_t index, std::string_view name, std::string& out) const {
        fmt::format_to(std::back_inserter(out),
                       R"({{"index":{},"id":"call_{}_{}","type":"function","function":{{"name":)",
                       index, head_.id, index);
        put_string(out, name);
        out += R"(,"arguments":)";
    }

    std::string content_, reasoning_;
    std::vector<Call> calls_;
    size_t calls_streamed_ = 0;
    std::string waiting_;  // logprobs entries of tokens that no chunk has shown yet
};

// ------------------------------------------------------------------ plain completions

class CompletionFormat : public OpenAiFormat {
  public:
    explicit CompletionFormat(const ReplyHead& head)
        : OpenAiFormat(head, "cmpl-", "text_completion", "text_completion") {}

    void open(std::string&) override {}

    void piece(std::span<const OutputEvent> events, std::span<const TokenShown> tokens,
               std::string& out) override {
        note(tokens);
        for (const OutputEvent& event : events) {
            out += chunk_;
            put_choice(event.text, "", out);
            if (head_.include_rounds) put_speculation(event.text, out);
            out += usage_null_;
            out += "}\n\n";
        }
    }

    void collect(std::span<const OutputEvent> events, std::span<const TokenShown> tokens) override {
        note(tokens);
        for (const OutputEvent& event : events) content_ += event.text;
    }

    std::string whole(const ReplySummary& summary) override {
        std::string out = object_;
        put_choice(content_, finish_reason(summary.end), out);
        out += ',';
        put_end(summary, out);
        return out;
    }

  protected:
    void put_finish(const ReplySummary& summary, std::string& out) override {
        out += chunk_;
        put_choice("", finish_reason(summary.end), out);
        if (head_.include_rounds) put_speculation("", out);
        out += usage_null_;
        out += '}';
    }

  private:
    // The older form of logprobs: four lists beside one another.
    void note(std::span<const TokenShown> tokens) {
        for (const TokenShown& token : tokens) {
            const std::string_view comma = tokens_.empty() ? "" : ",";
            tokens_ += comma;
            const std::string text = repair_utf8(token.bytes);
            put_string(tokens_, text);
            fmt::format_to(std::back_inserter(log_probabilities_), "{}{:.6f}", comma,
                           std::max(token.likelihood.log_probability, -9999.0f));
            fmt::format_to(std::back_inserter(offsets_), "{}{}", comma, offset_);
            for (const char c : text) offset_ += (c & 0xc0) != 0x80 ? 1 : 0;
            top_ += comma;
            top_ += '{';
            for (uint32_t k = 0; k < token.likelihood.top_count; ++k) {
                if (k > 0) top_ += ',';
                put_string(top_, repair_utf8(token.top_bytes[k]));
                fmt::format_to(std::back_inserter(top_), ":{:.6f}",
                               std::max(token.likelihood.top[k].log_probability, -9999.0f));
            }
            top_ += '}';
        }
    }

    void put_choice(std::string_view text, std::string_view reason, std::string& out) {
        out += R"(,"choices":[{"index":0,"text":)";
        put_string(out, text);
        out += R"(,"logprobs":)";
        if (head_.likelihoods && !tokens_.empty()) {
            out += fmt::format(
                R"({{"tokens":[{}],"token_logprobs":[{}],"top_logprobs":[{}],"text_offset":[{}]}})",
                tokens_, log_probabilities_, top_, offsets_);
            for (std::string* list : {&tokens_, &log_probabilities_, &top_, &offsets_})
                list->clear();
        } else {
            out += "null";
        }
        out += R"(,"finish_reason":)";
        put_string_or_null(out, reason);
        out += "}]";
    }

    std::string content_;
    std::string tokens_, log_probabilities_, top_, offsets_;
    size_t offset_ = 0;  // characters before the next token
};

}  // namespace

std::unique_ptr<ReplyFormat> chat_format(const ReplyHead& head) {
    return std::make_unique<ChatFormat>(head);
}

std::unique_ptr<ReplyFormat> completion_format(const ReplyHead& head) {
    return std::make_unique<CompletionFormat>(head);
}

std::string error_body(const ApiProblem& problem) {
    std::string out = R"({"error":{"message":)";
    put_string(out, repair_utf8(problem.message));
    out += R"(,"type":)";
    put_string(out, error_type(problem.status));
    out += R"(,"param":)";
    put_string_or_null(out, problem.param);
    out += R"(,"code":)";
    put_string_or_null(out, problem.code);
    return out + "}}";
}

std::string model_object(const ModelShown& model, int64_t created) {
    std::string out = R"({"id":)";
    put_string(out, model.id);
    return out + fmt::format(R"(,"object":"model","created":{},"owned_by":"tessera",)"
                             R"("max_model_len":{}}})",
                             created, model.context_tokens);
}

std::string model_list(std::span<const ModelShown> models, int64_t created) {
    std::string out = R"({"object":"list","data":[)";
    for (const ModelShown& model : models) {
        if (out.back() == '}') out += ',';
        out += model_object(model, created);
    }
    return out + "]}";
}

}  // namespace tessera::openai
