#include "server/reply.h"

#include <utility>

#include <fmt/format.h>

namespace tessera {

using Kind = OutputEvent::Kind;

HttpReply problem_reply(const ApiProblem& problem, std::string body) {
    HttpReply reply{problem.status, std::move(body)};
    if (problem.retry_after_ms > 0) {
        reply.headers.emplace_back("Retry-After",
                                   fmt::to_string((problem.retry_after_ms + 999) / 1000));
        reply.headers.emplace_back("retry-after-ms", fmt::to_string(problem.retry_after_ms));
    }
    if (problem.status == 401) reply.headers.emplace_back("WWW-Authenticate", "Bearer");
    return reply;
}

Reply::Reply(JobSpec spec, ReplyPlan plan, const Model& model, std::shared_ptr<Exchange> exchange,
             std::unique_ptr<ReplyObserver> observer)
    : Job(std::move(spec)),
      plan_(std::move(plan)),
      model_(model),
      exchange_(std::move(exchange)),
      observer_(std::move(observer)),
      detokenizer_(model_.detokenizer(plan_.parser ? ShowSpecials::kShow : ShowSpecials::kSkip)),
      stops_(plan_.stops) {}

void Reply::queued() {
    if (plan_.parser) {
        provenance_.push(plan_.begins.size(), Origin::kModel);
        read(plan_.parser->push(plan_.begins));
    }
    if (!plan_.stream) return;
    HttpReply head;
    head.content_type = "text/event-stream; charset=utf-8";
    head.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
    plan_.format->set_prompt(static_cast<uint32_t>(spec().prompt.size()));
    plan_.format->open(head.body);
    exchange_->begin(std::move(head), std::string(plan_.format->ping()));
}

void Reply::started(uint32_t cached) {
    cached_ = cached;
    observer_->started(cached);
}

bool Reply::tokens(std::span<const Token> tokens, std::span<const Likelihood> likelihoods,
                   const Round& round) {
    const uint32_t before = completion_;
    if (plan_.rounds && round.passes > 0) rounds_.push_back(round);
    for (size_t i = 0; i < tokens.size() && !enough_; ++i) {
        ++completion_;
        if (!likelihoods.empty()) {
            TokenShown shown{model_.token_bytes(tokens[i]), likelihoods[i], {}};
            for (uint32_t k = 0; k < shown.likelihood.top_count; ++k)
                shown.top_bytes.push_back(model_.token_bytes(shown.likelihood.top[k].token));
            shown_.push_back(std::move(shown));
        }
        const std::string text = detokenizer_.push(tokens[i]);
        if (plan_.rounds) provenance_.push(text.size(), origin_of(round, i));
        read(stops_.push(text));
        if (reasons_ && !answers_) reasoning_ = completion_;
        enough_ = enough_ || stops_.stopped();
    }
    if (completion_ > before) observer_->tokens(completion_ - before);
    return hand_over() && !enough_;
}

void Reply::read(std::string_view text) {
    if (plan_.parser) return read(plan_.parser->push(text));
    plain_bytes_ += text.size();
    if (!text.empty())
        read(std::vector<OutputEvent>{{Kind::kContent, std::string(text), true, plain_bytes_}});
}

void Reply::read(std::vector<OutputEvent> events) {
    for (OutputEvent& event : events) {
        if (enough_ && called_ && plan_.one_call) return;  // what follows the one call
        reasons_ = reasons_ || event.kind == Kind::kReasoning;
        answers_ = answers_ || event.kind != Kind::kReasoning;
        called_ = called_ || (event.kind == Kind::kCallEnd && event.whole);
        enough_ = enough_ || (event.kind == Kind::kCallEnd && plan_.one_call);
        const bool shown = event.kind == Kind::kReasoning || event.kind == Kind::kContent;
        if (plan_.rounds && shown) provenance_.take(event.end, event.text.size(), spans_);
        const bool text = shown || event.kind == Kind::kArguments;
        if (text && !events_.empty() && events_.back().kind == event.kind) {
            events_.back().text += event.text;
        } else {
            events_.push_back(std::move(event));
        }
    }
}

// Sends what the step brought; false if nobody takes it.
bool Reply::hand_over() {
    if (plan_.stream) {
        out_.clear();
        plan_.format->origins(rounds_, spans_);
        plan_.format->piece(events_, shown_, out_);
        lost_ = lost_ || !exchange_->write(out_);
    } else {
        plan_.format->collect(events_, shown_);
        lost_ = lost_ || exchange_->gone();
    }
    events_.clear();
    shown_.clear();
    rounds_.clear();
    spans_.clear();
    return !lost_;
}

void Reply::ended(JobEnd end, const JobReport& report) {
    if (end == JobEnd::kModel) ++completion_;
    Ended how = Ended::kStop;
    if (lost_ || end == JobEnd::kCancelled) {
        how = exchange_->gone() ? Ended::kCancelled : Ended::kCut;
        if (plan_.stream) exchange_->end();
    } else if (end == JobEnd::kCut || end == JobEnd::kFailed) {
        how = end == JobEnd::kCut ? Ended::kCut : Ended::kError;
        fail({.status = 503,
              .message = end == JobEnd::kCut ? "the server is shutting down"
                                             : "there is no memory for another conversation",
              .code = end == JobEnd::kCut ? "shutting_down" : "out_of_memory",
              .retry_after_ms = 1000});
    } else {
        const bool full = end == JobEnd::kLimit || end == JobEnd::kContext;
        how = full && !stops_.stopped() ? Ended::kLength : Ended::kStop;
        finish(end, report);
        if (how == Ended::kStop && called_ && !stops_.stopped()) how = Ended::kToolCalls;
    }
    const auto read = static_cast<uint32_t>(spec().prompt.size());
    observer_->ended(how, {read, cached_, completion_}, report);
}

void Reply::finish(JobEnd end, const JobReport& report) {
    if (!enough_) {
        const std::string last = detokenizer_.finish();
        if (plan_.rounds) provenance_.extend(last.size());
        read(stops_.push(last));
        read(stops_.finish());
        if (plan_.parser) read(plan_.parser->finish());
    } else if (stops_.stopped() && plan_.parser) {
        read(plan_.parser->finish());
    }
    ReplySummary summary;
    const bool full = end == JobEnd::kLimit || end == JobEnd::kContext;
    summary.end = stops_.stopped() ? ReplyEnd::kStopString
                  : full           ? ReplyEnd::kLength
                  : called_        ? ReplyEnd::kToolCalls
                                   : ReplyEnd::kStop;
    summary.stop_string = stops_.stop();
    summary.prompt_tokens = static_cast<uint32_t>(spec().prompt.size());
    summary.cached_tokens = cached_;
    summary.completion_tokens = completion_;
    summary.reasoning_tokens = reasoning_;
    summary.stats = report.stats;
    summary.prompt_s = report.prefill_s;
    summary.predicted_s = report.decode_s;
    out_.clear();
    if (plan_.stream) {
        plan_.format->origins(rounds_, spans_);
        plan_.format->piece(events_, shown_, out_);
        plan_.format->close(summary, out_);
        exchange_->write(out_);
        exchange_->end();
        return;
    }
    plan_.format->collect(events_, shown_);
    HttpReply reply;
    reply.body = plan_.format->whole(summary);
    exchange_->reply(std::move(reply));
}

void Reply::fail(const ApiProblem& problem) {
    if (plan_.stream) {
        out_.clear();
        plan_.format->fail(problem, out_);
        exchange_->write(out_);
        return exchange_->end();
    }
    exchange_->reply(problem_reply(problem, plan_.format->problem(problem)));
}

}  // namespace tessera
