#include "runtime/sequence.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace tessera {

Sequence::Sequence(const CpuMachine& machine, bool drafts)
    : cache_(machine.weights().shape, machine.options().ranks, machine.options().context),
      drafts_(drafts),
      course_(drafts ? taps_ring(*machine.drafter()->drafter) : 0) {
    const uint64_t mark_bytes = Arena::taken(cache_.ring_bytes());
    mark_memory_ = Arena(kMarks * mark_bytes);
    for (uint32_t i = 0; i < kMarks; ++i) marks_.push_back(mark_memory_.take(mark_bytes));
    if (!drafts) return;
    const DrafterShape& shape = *machine.drafter()->drafter;
    columns_ = static_cast<uint32_t>(shape.taps.size()) * shape.hidden;
    taps_.resize(size_t{taps_ring(shape)} * columns_);
    draft_cache_.emplace_back(machine.drafter()->shape, machine.options().ranks,
                              machine.options().context + shape.block);
}

void Sequence::mark() {
    cache_.save_rings(marks_[course_.mark()]);
}

uint32_t Sequence::rewind(uint32_t length) {
    const Course::Return back = course_.rewind(length);
    if (back.mark) cache_.load_rings(marks_[*back.mark]);
    return back.length;
}

// ------------------------------------------------------------------ the decoder

Decoder::Decoder(CpuMachine& machine)
    : machine_(machine),
      tokens_(kStepRowsMax),
      positions_(kStepRowsMax),
      caches_(kStepRowsMax),
      taps_(kStepRowsMax),
      context_(kStepRowsMax),
      logits_(machine.weights().shape.vocab) {}

void Decoder::read(std::span<const Reading> readings, uint32_t logits_from) {
    uint32_t rows = 0;
    bool tapped = false;
    for (const Reading& reading : readings) {
        Sequence& s = *reading.sequence;
        const auto count = static_cast<uint32_t>(reading.tokens.size());
        CHECK(rows + count <= kStepRowsMax && s.length() + count <= s.cache_.context());
        if (s.drafts_) {
            // Without a window the drafter sees everything: it takes in what would be overwritten.
            if (machine_.drafter()->drafter->attention.window == 0)
                while (s.course_.would_lose(count)) take_in(s, kStepRowsMax);
            s.course_.make_room(count, reading.keeps_taps);
        }
        const bool keeps = s.drafts_ && reading.keeps_taps;
        tapped = tapped || keeps;
        for (uint32_t i = 0; i < count; ++i, ++rows) {
            tokens_[rows] = reading.tokens[i];
            positions_[rows] = s.length() + i;
            caches_[rows] = &s.cache_;
            taps_[rows] = keeps ? s.taps_at(s.length() + i) : nullptr;
        }
    }
    StepInput input{std::span(tokens_).first(rows), std::span(positions_).first(rows),
                    std::span(caches_).first(rows), logits_from};
    if (tapped) input.taps = std::span(taps_).first(rows);
    machine_.step(input);
    for (const Reading& reading : readings)
        reading.sequence->course_.read(static_cast<uint32_t>(reading.tokens.size()));
}

std::span<const float> Decoder::logits(uint32_t row) {
    return machine_.logits_at(row, logits_);
}

std::span<const float> Decoder::draft_logits(uint32_t slot) {
    return machine_.draft_logits_at(slot, logits_);
}

void Decoder::take_in(Sequence& s, uint32_t rows) {
    const uint32_t count = std::min(rows, s.length() - s.course_.drafted());
    for (uint32_t i = 0; i < count; ++i) context_[i] = s.taps_at(s.course_.drafted() + i);
    StepInput input;
    input.context = {&s.draft_cache_[0], s.course_.drafted(), std::span(context_).first(count),
                     s.course_.seen_from()};
    machine_.draft(input);
    s.course_.take_in(count);
}

void Decoder::catch_up(Sequence& s) {
    CHECK(s.drafts_);
    while (s.length() - s.course_.drafted() > kDecodeRowsMax) take_in(s, kStepRowsMax);
}

void Decoder::draft(Sequence& s, uint32_t anchor) {
    const uint32_t block = machine_.drafter()->drafter->block;
    const uint32_t count = s.length() - s.course_.drafted();
    CHECK(s.drafts_ && count <= kDecodeRowsMax && block <= kStepRowsMax);
    tokens_[0] = anchor;
    std::iota(positions_.begin(), positions_.begin() + block, s.length());
    std::fill_n(caches_.begin(), block, &s.draft_cache_[0]);
    for (uint32_t i = 0; i < count; ++i) context_[i] = s.taps_at(s.course_.drafted() + i);
    StepInput input{std::span(tokens_).first(block), std::span(positions_).first(block),
                    std::span(caches_).first(block), 1};
    input.context = {&s.draft_cache_[0], s.course_.drafted(), std::span(context_).first(count),
                     s.course_.seen_from()};
    machine_.draft(input);
    s.course_.take_in(count);
}

}  // namespace tessera
