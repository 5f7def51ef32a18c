#include "runtime/gpu/decoder.h"

#include <algorithm>

#include "base/check.h"

namespace tessera::gpu {

void Sequence::Landed::operator()(State* state) const {
    if (state->decoder.flying_ == state) state->decoder.land();
    delete state;
}

void Sequence::mark() {
    state_->decoder.land();
    CHECK(state_->ahead.empty());
    state_->memory->save_rings(state_->course.mark());
}

uint32_t Sequence::rewind(uint32_t length) {
    state_->decoder.land();
    state_->ahead.clear();
    const Course::Return back = state_->course.rewind(length);
    if (back.mark) state_->memory->load_rings(*back.mark);
    return back.length;
}

Decoder::Decoder(Runner& runner, uint32_t context, const DrafterShape* drafter)
    : runner_(runner), context_(context), drafter_(drafter) {
    if (drafter == nullptr) return;
    CHECK(drafter->block <= kRowsMax);
    tap_columns_ = static_cast<uint32_t>(drafter->taps.size()) * drafter->hidden;
}

Sequence Decoder::begin(bool drafts) {
    CHECK(!drafts || drafter_ != nullptr);
    land();
    return Sequence(new Sequence::State{*this, runner_.take_memory(drafts),
                                        Course(drafts ? taps_ring(*drafter_) : 0)});
}

uint16_t* Decoder::taps_at(const Sequence& s, uint32_t position) const {
    return s.state_->memory->taps + size_t{s.state_->course.taps_row(position)} * tap_columns_;
}

void Decoder::read(std::span<const Reading> readings, uint32_t logits_from) {
    land();
    steps_ = live_experts_ = 0;
    Step step{};
    uint32_t first = 0;  // of the step's rows, over all readings
    for (const Reading& reading : readings) {
        Sequence& s = *reading.sequence;
        const auto count = static_cast<uint32_t>(reading.tokens.size());
        CHECK(s.state_->ahead.empty());
        CHECK(first + step.rows + count <= kStepRowsMax && s.length() + count <= context_);
        if (s.drafts()) {
            // Without a window the drafter sees everything: it takes in what would be overwritten.
            if (drafter_->attention.window == 0)
                while (s.state_->course.would_lose(count)) take_in(s);
            s.state_->course.make_room(count, reading.keeps_taps);
        }
        for (uint32_t done = 0; done < count;) {
            const uint32_t some = std::min(count - done, kRowsMax - step.rows);
            add(reading, done, some, step);
            done += some;
            if (step.rows < kRowsMax) continue;
            run(step, first, logits_from);
            first += kRowsMax;
            step = {};
        }
    }
    if (step.rows > 0) run(step, first, logits_from);
    for (const Reading& reading : readings)
        reading.sequence->state_->course.read(static_cast<uint32_t>(reading.tokens.size()));
}

// Tokens [begin, begin + count) of a reading become the step's next rows, a run of their own.
void Decoder::add(const Reading& reading, uint32_t begin, uint32_t count, Step& step) const {
    const Sequence& s = *reading.sequence;
    const uint32_t position = s.length() + begin;
    step.run[step.runs++] = {step.rows, count, position, 0, s.state_->memory->cache};
    for (uint32_t i = 0; i < count; ++i, ++step.rows) {
        step.tokens[step.rows] = reading.tokens[begin + i];
        step.positions[step.rows] = position + i;
        if (s.drafts() && reading.keeps_taps) step.taps[step.rows] = taps_at(s, position + i);
    }
}

void Decoder::run(Step& step, uint32_t first, uint32_t logits_from) {
    step.logits_from = std::clamp(logits_from, first, first + step.rows) - first;
    runner_.run(Pass::target, step, first);
    ++steps_;
    live_experts_ += runner_.live_experts();
}

Step Decoder::with_context(Sequence& s, uint32_t rows) const {
    Step step{};
    step.context_rows = rows;
    step.context_position = s.state_->course.drafted();
    for (uint32_t i = 0; i < rows; ++i)
        step.context_taps[i] = taps_at(s, step.context_position + i);
    step.run[0] = {0, 0, s.length(), s.state_->course.seen_from(), s.state_->memory->draft_cache};
    return step;
}

void Decoder::take_in(Sequence& s) {
    const uint32_t rows = std::min(kRowsMax, s.length() - s.state_->course.drafted());
    runner_.run(Pass::context, with_context(s, rows), 0);
    s.state_->course.take_in(rows);
}

void Decoder::catch_up(Sequence& s) {
    CHECK(s.drafts());
    land();
    while (s.length() - s.state_->course.drafted() > kRowsMax) take_in(s);
}

void Decoder::draft(Sequence& s, uint32_t anchor) {
    CHECK(s.drafts());
    land();
    CHECK(s.state_->ahead.empty());
    const uint32_t rows = s.length() - s.state_->course.drafted();
    CHECK(rows <= kRowsMax);
    Step step = with_context(s, rows);
    step.rows = drafter_->block;
    step.logits_from = 1;
    step.runs = 1;
    step.run[0].rows = step.rows;
    step.tokens[0] = anchor;
    for (uint32_t i = 0; i < step.rows; ++i) step.positions[i] = s.length() + i;
    runner_.run(Pass::block, step, 0);
    s.state_->course.take_in(rows);
}

// ------------------------------------------------------------------ rounds

bool Decoder::runs_ahead(const Sequence& s) const {
    return flying_ == s.state_.get() || !s.state_->ahead.empty();
}

void Decoder::stop_rounds() {
    if (flying_ != nullptr) runner_.stop_rounds();
}

void Decoder::land() {
    if (flying_ == nullptr) return;
    runner_.stop_rounds();
    while (const std::optional<Round> round = runner_.next_round()) {
        follow(*flying_, *round);
        flying_->ahead.push_back(*round);
    }
    flying_ = nullptr;
}

Round Decoder::round(Sequence& s, uint32_t anchor, const RoundsAsk& ask) {
    Sequence::State& state = *s.state_;
    if (!state.ahead.empty()) {
        const Round round = state.ahead.front();
        state.ahead.pop_front();
        return round;
    }
    if (flying_ != &state) {
        land();
        start_rounds(s, anchor, ask);
    }
    const std::optional<Round> round = runner_.next_round();
    CHECK(round);  // the one before was not the last
    follow(state, *round);
    if (round->last) {
        CHECK(!runner_.next_round());
        flying_ = nullptr;
    }
    return *round;
}

void Decoder::start_rounds(Sequence& s, uint32_t anchor, const RoundsAsk& ask) {
    Sequence::State& state = *s.state_;
    const uint32_t length = s.length();
    CHECK(length + 1 < context_ && ask.context <= context_ && ask.tokens_max > 0);
    CHECK(ask.tokens_max + kRowsMax <= kStepRowsMax);  // so far rings can go back
    RoundsInput input{};
    input.ask = ask;
    input.from = {anchor, length, length, 0};
    input.cache = state.memory->cache;
    state.keeps_taps = ask.drafts > 0;
    if (state.keeps_taps) {
        CHECK(s.drafts() && ask.drafts < drafter_->block);
        catch_up(s);
        input.from.drafted = state.course.drafted();
        input.draft_cache = state.memory->draft_cache;
        input.taps = state.memory->taps;
        input.block = drafter_->block;
        input.taps_ring = taps_ring(*drafter_);
        input.tap_columns = tap_columns_;
        input.seen_from = state.course.seen_from();
    }
    runner_.start_rounds(input);
    flying_ = &state;
}

// The sequence is where the machine was after the round: it has read the anchor and what it
// verified, and has gone back to what stands.
void Decoder::follow(Sequence::State& state, const Round& round) const {
    Course& course = state.course;
    if (round.drafted > 0) course.take_in(course.length() - course.drafted());
    const uint32_t length = course.length(), rows = round.verified + 1;
    if (state.memory->draft_cache != nullptr) course.make_room(rows, state.keeps_taps);
    course.read(rows);
    CHECK(!course.rewind(length + round.count).mark);
}

}  // namespace tessera::gpu
