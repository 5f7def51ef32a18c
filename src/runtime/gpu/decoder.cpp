#include "runtime/gpu/decoder.h"

#include <algorithm>

#include "base/check.h"

namespace tessera::gpu {

void Sequence::mark() {
    memory_->save_rings(course_.mark());
}

uint32_t Sequence::rewind(uint32_t length) {
    const Course::Return back = course_.rewind(length);
    if (back.mark) memory_->load_rings(*back.mark);
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
    return {runner_.take_memory(drafts), drafts ? taps_ring(*drafter_) : 0};
}

uint16_t* Decoder::taps_at(const Sequence& s, uint32_t position) const {
    return s.memory_->taps + size_t{s.course_.taps_row(position)} * tap_columns_;
}

void Decoder::read(std::span<const Reading> readings, uint32_t logits_from) {
    steps_ = live_experts_ = 0;
    Step step{};
    uint32_t first = 0;  // of the step's rows, over all readings
    for (const Reading& reading : readings) {
        Sequence& s = *reading.sequence;
        const auto count = static_cast<uint32_t>(reading.tokens.size());
        CHECK(first + step.rows + count <= kStepRowsMax && s.length() + count <= context_);
        if (s.drafts()) {
            // Without a window the drafter sees everything: it takes in what would be overwritten.
            if (drafter_->attention.window == 0)
                while (s.course_.would_lose(count)) take_in(s);
            s.course_.make_room(count, reading.keeps_taps);
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
        reading.sequence->course_.read(static_cast<uint32_t>(reading.tokens.size()));
}

// Tokens [begin, begin + count) of a reading become the step's next rows, a run of their own.
void Decoder::add(const Reading& reading, uint32_t begin, uint32_t count, Step& step) const {
    const Sequence& s = *reading.sequence;
    const uint32_t position = s.length() + begin;
    step.run[step.runs++] = {step.rows, count, position, 0, s.memory_->cache};
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
    step.context_position = s.course_.drafted();
    for (uint32_t i = 0; i < rows; ++i)
        step.context_taps[i] = taps_at(s, step.context_position + i);
    step.run[0] = {0, 0, s.length(), s.course_.seen_from(), s.memory_->draft_cache};
    return step;
}

void Decoder::take_in(Sequence& s) {
    const uint32_t rows = std::min(kRowsMax, s.length() - s.course_.drafted());
    runner_.run(Pass::context, with_context(s, rows), 0);
    s.course_.take_in(rows);
}

void Decoder::catch_up(Sequence& s) {
    CHECK(s.drafts());
    while (s.length() - s.course_.drafted() > kRowsMax) take_in(s);
}

void Decoder::draft(Sequence& s, uint32_t anchor) {
    CHECK(s.drafts());
    const uint32_t rows = s.length() - s.course_.drafted();
    CHECK(rows <= kRowsMax);
    Step step = with_context(s, rows);
    step.rows = drafter_->block;
    step.logits_from = 1;
    step.runs = 1;
    step.run[0].rows = step.rows;
    step.tokens[0] = anchor;
    for (uint32_t i = 0; i < step.rows; ++i) step.positions[i] = s.length() + i;
    runner_.run(Pass::block, step, 0);
    s.course_.take_in(rows);
}

}  // namespace tessera::gpu
