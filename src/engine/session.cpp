// Sessions: streams of tokens over the texts of a backend.
#include "tessera/session.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "base/check.h"
#include "decode/stream.h"

#include "engine/parts.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begun) {
    return std::chrono::duration<double>(Clock::now() - begun).count();
}

ControllerOptions controller_options(const Speculation& speculation, const Backend& backend,
                                     const Text& text) {
    ControllerOptions options;
    options.mode = speculation.mode == Speculate::kOff     ? DraftMode::off
                   : speculation.mode == Speculate::kFixed ? DraftMode::fixed
                                                           : DraftMode::automatic;
    options.max_draft = std::clamp(speculation.max_draft, 1u, kRowsMax - 1);
    options.has_drafter = backend.has_drafter() && text.drafts();
    // A published block may be shorter than what a step can verify: it has no slots beyond.
    if (options.has_drafter)
        options.max_draft = std::min(options.max_draft, backend.draft_block() - 1);
    if (!options.has_drafter && options.mode == DraftMode::fixed) options.mode = DraftMode::off;
    return options;
}

}  // namespace

struct Session::State {
    // On the memory of `before`, or on new memory.
    State(Model from, const Sampling& sampling, const Speculation& speculation,
          std::unique_ptr<Text> before = nullptr)
        : model(std::move(from)),
          text(before ? std::move(before) : backend().begin(speculation.mode != Speculate::kOff)),
          rule(sampling),
          speculates(speculation.mode != Speculate::kOff),
          learns(speculation.mode == Speculate::kAuto),
          learnt(parts().experience_at(sampling.temperature)),
          stream(make_stream(sampling, speculation)) {
        logits.resize(model.info().vocab);
    }

    Stream make_stream(const Sampling& sampling, const Speculation& speculation) const {
        const std::scoped_lock lock(parts().turn);
        return {sampling,           controller_options(speculation, backend(), *text),
                parts().costs,      model.info().context_tokens,
                model.info().vocab, learns && learnt ? &*learnt : nullptr};
    }

    const Model::Parts& parts() const { return *model.parts_; }
    Backend& backend() const { return *model.parts_->backend; }

    // Whether the drafter will want what the model leaves of the next rows: not while it pauses for
    // longer than it looks back.
    bool wants_taps() const {
        return speculates && stream.controller().plans_until_probe() <= backend().draft_window();
    }

    // What was to be read and was not is no longer part of the text; nor are rounds that ran ahead
    // of it.
    void drop_unread() {
        if (reading) stream.truncate(text->length());
        reading = false;
        drop_ahead();
    }
    void drop_ahead() {
        if (backend().runs_ahead(*text))
            text->rewind(std::min(text->length(), static_cast<uint32_t>(stream.text().size())));
    }

    // A step by the machine itself, behind the stream's plan or as one that ran ahead of it.
    void make_round(const RoundsAsk& ask);
    // The rounds that a plan begins; none where the machine has to be told every step.
    std::optional<RoundsAsk> rounds_of(const Controller::Plan& plan);

    Model model;
    std::unique_ptr<Text> text;
    Sampling rule;
    bool speculates;
    bool learns;  // for later sessions
    std::optional<Experience>& learnt;
    std::unique_ptr<GrammarGuide> guide;  // that the stream follows
    Stream stream;
    bool reading = false;       // begin() was called, and read_on() has not come to the end
    uint32_t known_unread = 0;  // of what is to be read, tokens that the text had before
    // Of append(): who is shown what is expected after each token from `see_from` on, or null.
    const Session::Expectation* see = nullptr;
    uint32_t see_from = 0;
    // After a prompt the model has read all of the text, and the logits of its end are kept here.
    bool first_logits = false;
    std::vector<float> logits;
    // Of the step: the block's pass and choices; and what came before, a drafter's catching up.
    double drafting_seconds = 0, planning_seconds = 0;
};

Session::Session(Model model, const Sampling& sampling, const Speculation& speculation)
    : state_(std::make_unique<State>(std::move(model), sampling, speculation)) {}

Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

// ------------------------------------------------------------------ the text

bool Session::append(std::span<const Token> tokens, const std::function<bool()>& go_on,
                     const Expectation& see) {
    begin(tokens);
    state_->see = see ? &see : nullptr;
    bool whole = true;
    while (whole && !read_on()) whole = !go_on || go_on();
    if (!whole) state_->drop_unread();
    state_->see = nullptr;
    return whole;
}

void Session::begin(std::span<const Token> tokens) {
    CHECK(tokens.size() <= room());
    State& s = *state_;
    const std::scoped_lock lock(s.parts().turn);
    s.drop_unread();
    const auto before = static_cast<uint32_t>(s.stream.text().size());
    s.stream.append(tokens);
    // What was drafted and verified beyond the last token that was given is dropped.
    const uint32_t read = s.text->rewind(std::min(s.text->length(), before));
    if (read > 0) s.text->mark();
    if (read < s.stream.text().size()) s.first_logits = false;
    s.known_unread = before - read;
    s.see_from = before;
    s.reading = true;
}

bool Session::read_on() {
    State& s = *state_;
    CHECK(s.reading);
    const std::scoped_lock lock(s.parts().turn);
    const auto begun = Clock::now();
    const std::span<const Token> text = s.stream.text();
    const uint32_t at = s.text->length();
    const auto count = std::min<uint32_t>(kStepRowsMax, static_cast<uint32_t>(text.size()) - at);
    if (count > 0) {
        const Backend::Reading piece{s.text.get(), text.subspan(at, count), s.speculates};
        s.backend().read(std::span(&piece, 1), s.see ? 0 : count - 1);
        // The text's last token may be read again before these: it was shown, or nobody asked.
        for (uint32_t row = 0; s.see && row < count; ++row)
            if (at + row >= s.see_from) (*s.see)(at + row - s.see_from, s.backend().logits(row));
    }
    s.reading = at + count < text.size();
    if (!s.reading) {
        if (count > 0) {
            std::ranges::copy(s.backend().logits(count - 1), s.logits.begin());
            s.first_logits = true;
        }
        s.text->mark();
    }
    const uint32_t known = std::min(count, s.known_unread);
    s.known_unread -= known;
    s.stream.stats().prompt_tokens += count - known;
    s.stream.stats().prompt_seconds += seconds_since(begun);
    return !s.reading;
}

std::span<const Token> Session::text() const {
    return state_->stream.text();
}

uint32_t Session::room() const {
    return state_->stream.room();
}

uint32_t Session::reuse(std::span<const Token> wanted) {
    State& s = *state_;
    const std::scoped_lock lock(s.parts().turn);
    s.drop_unread();
    const std::span<const Token> text = s.stream.text();
    const auto same = static_cast<uint32_t>(std::ranges::mismatch(text, wanted).in1 - text.begin());
    uint32_t kept = std::min<uint32_t>(same, static_cast<uint32_t>(wanted.size()) - 1);
    // The newest token may be unread: then it is kept without being read.
    if (kept <= s.text->length()) kept = s.text->rewind(kept);
    s.stream.truncate(kept);
    s.first_logits = false;
    return kept;
}

void Session::restart(const Sampling& sampling, const Speculation& speculation) {
    State& s = *state_;
    s.drop_unread();
    // The logits of the end hold whatever is chosen from them.
    const bool first_logits = s.first_logits;
    auto fresh = std::make_unique<State>(s.model, sampling, speculation, std::move(s.text));
    fresh->stream.append(s.stream.text());
    fresh->first_logits = first_logits;
    fresh->logits = std::move(s.logits);
    state_ = std::move(fresh);
}

void Session::watch_likelihood(uint32_t top) {
    CHECK(top <= Likelihood::kTopMax);
    state_->stream.watch_likelihood(top);
}

void Session::constrain(const Constraint& constraint) {
    State& s = *state_;
    CHECK(s.model.info().constrains);
    s.parts().vocabulary_of_grammars();
    const std::scoped_lock lock(s.parts().turn);
    s.guide = std::make_unique<GrammarGuide>(s.parts().masks_of(constraint.program_),
                                             s.parts().tokenizer, constraint);
    s.stream.follow(s.guide.get());
}

// ------------------------------------------------------------------ the answer

const Likelihood& Session::likelihood() const {
    return state_->stream.likelihood();
}

uint32_t Session::ready() const {
    return state_->stream.ready();
}

Token Session::next() {
    CHECK(room() > 0);
    if (ready() == 0) {
        Session* const self = this;
        step(std::span(&self, 1));
    }
    return state_->stream.take();
}

uint32_t Session::step_sessions_max() {
    return kStepRowsMax;
}

void Session::step(std::span<Session* const> sessions) {
    CHECK(!sessions.empty() && sessions.size() <= step_sessions_max());
    const State& first = *sessions.front()->state_;
    Backend& backend = first.backend();
    const std::scoped_lock lock(first.parts().turn);

    // After a prompt the logits are there: no pass of the model is needed. Who has tokens ready
    // needs none either.
    std::array<State*, kStepRowsMax> stepping;
    size_t count = 0;
    for (Session* const session : sessions) {
        State& s = *session->state_;
        CHECK(&s.backend() == &backend && s.stream.room() > 0 && !s.stream.text().empty() &&
              !s.reading);
        if (s.stream.ready() > 0) continue;
        if (s.first_logits) {
            const auto begun = Clock::now();
            s.stream.choose(s.logits);
            s.first_logits = false;
            s.stream.stats().seconds += seconds_since(begun);
            continue;
        }
        if (s.stream.plain() && backend.runs_ahead(*s.text)) {
            // Others wait for the rounds that were begun, and for no more.
            if (sessions.size() > 1) backend.stop_rounds();
            s.make_round({});
            continue;
        }
        s.drop_ahead();
        // All but the newest token is read, unless an append() was broken off there.
        const auto unread = static_cast<uint32_t>(s.stream.text().size()) - 1;
        if (s.text->length() > unread) s.text->rewind(unread);
        stepping[count++] = &s;
    }
    if (count == 0) return;

    const auto rows_max = kStepRowsMax / static_cast<uint32_t>(count);
    std::array<Backend::Reading, kStepRowsMax> readings;
    uint32_t rows = 0;
    for (size_t i = 0; i < count; ++i) {
        State& s = *stepping[i];
        const auto begun = Clock::now();
        const Controller::Plan plan = s.stream.plan(rows_max);
        if (sessions.size() == 1) {
            if (const std::optional<RoundsAsk> ask = s.rounds_of(plan)) return s.make_round(*ask);
        }
        auto drafting = Clock::now();
        if (plan.source == DraftSource::block) {
            // What was left for the drafter while it paused, or by a prompt, is no cost of this
            // block: it is paid once.
            backend.catch_up(*s.text);
            drafting = Clock::now();
            backend.draft(*s.text, s.stream.text().back());
            s.stream.draft([&](uint32_t slot) { return backend.draft_logits(slot); });
            s.parts().costs.draft(seconds_since(drafting));
            s.stream.stats().bytes += backend.draft_bytes();
        }
        s.drafting_seconds = seconds_since(drafting);
        s.planning_seconds = seconds_since(begun) - s.drafting_seconds;
        s.stream.stats().draft_seconds += s.drafting_seconds;
        readings[i] = {s.text.get(), s.stream.rows(), s.wants_taps()};
        rows += static_cast<uint32_t>(s.stream.rows().size());
    }

    const auto begun = Clock::now();
    backend.read(std::span(readings).first(count), 0);
    uint32_t row = 0;
    for (size_t i = 0; i < count; ++i) {
        State& s = *stepping[i];
        const auto own = static_cast<uint32_t>(s.stream.rows().size());
        const uint32_t length = s.text->length() - own;
        Stats& stats = s.stream.stats();
        stats.bytes += backend.bytes();
        stats.experts += (backend.experts() - stats.experts) / (stats.steps + 1);
        const uint32_t accepted =
            s.stream.accept([&](uint32_t r) { return backend.logits(row + r); });
        s.text->rewind(length + 1 + accepted);
        row += own;
    }
    const double seconds = seconds_since(begun);
    first.parts().costs.step(rows, seconds);
    for (size_t i = 0; i < count; ++i) {
        State& s = *stepping[i];
        s.stream.settle(seconds + s.drafting_seconds, s.planning_seconds);
        if (s.learns) s.learnt = s.stream.controller().experience();
    }
}

std::optional<RoundsAsk> Session::State::rounds_of(const Controller::Plan& plan) {
    // So far a text can go back without reading anew (Course): what runs ahead may be for nothing.
    constexpr uint32_t kTokensMax = kStepRowsMax - 2 * kRowsMax;
    const bool block = plan.source == DraftSource::block;
    if (!backend().makes_rounds() || !stream.plain() ||
        (!block && plan.source != DraftSource::none))
        return std::nullopt;
    // One row by itself, where drafting may be tried again, is a plan of its own.
    if (!block && stream.controller().drafts_max() > 0) return std::nullopt;
    const std::vector<Token>& ends = model.info().end_tokens;
    if (ends.size() > kStopTokensMax) return std::nullopt;
    RoundsAsk ask;
    ask.temperature = rule.temperature;
    ask.top_p = rule.top_p;
    ask.min_p = rule.min_p;
    ask.seed = rule.seed;
    ask.tokens_max = kTokensMax;
    ask.context = model.info().context_tokens;
    ask.stops = static_cast<uint32_t>(ends.size());
    std::ranges::copy(ends, ask.stop);
    if (block) {
        ask.drafts = plan.count;
        ask.depth = stream.controller().depth_policy();
        ask.first_depth = stream.depth_to_explore(plan.count);
    }
    return ask;
}

void Session::State::make_round(const RoundsAsk& ask) {
    const auto begun = Clock::now();
    const Round round = backend().round(*text, stream.tokens().back(), ask);
    stream.keep(std::span(round.tokens).first(round.count), round.verified,
                std::span(round.confidence).first(round.drafted));
    // While copies of the text's own may do better than blocks, each step is planned.
    if (learns && stream.repeats_itself()) backend().stop_rounds();
    Stats& stats = stream.stats();
    stats.bytes += backend().bytes() + (round.drafted > 0 ? backend().draft_bytes() : 0);
    stats.experts += (backend().experts() - stats.experts) / (stats.steps + 1);
    stats.draft_seconds += round.draft_ns * 1e-9;
    Costs& costs = parts().costs;
    if (round.draft_ns > 0) costs.draft(round.draft_ns * 1e-9);
    if (round.verify_ns > 0) costs.step(round.verified + 1, round.verify_ns * 1e-9);
    stream.settle(seconds_since(begun));
    if (learns) learnt = stream.controller().experience();
}

const Stats& Session::stats() const {
    return state_->stream.stats();
}

}  // namespace tessera
