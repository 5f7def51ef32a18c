#include "runtime/sequence.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/check.h"

namespace tessera {
namespace {

// Rows of taps: all that the drafter's window can still want, and what one read adds. Without a
// window nothing may be lost, so what waits is taken in before it is overwritten.
uint32_t taps_ring(const DrafterShape& drafter) {
    return drafter.attention.window + 2 * kStepRowsMax;
}

}  // namespace

Sequence::Sequence(const CpuMachine& machine, bool drafts)
    : cache_(machine.weights().shape, machine.options().ranks, machine.options().context),
      drafts_(drafts) {
    const uint64_t mark_bytes = Arena::taken(cache_.ring_bytes());
    mark_memory_ = Arena(kMarks * mark_bytes);
    for (uint32_t i = 0; i < kMarks; ++i)
        marks_.push_back({.memory = mark_memory_.take(mark_bytes)});
    if (!drafts) return;
    CHECK(machine.drafter() != nullptr);
    const DrafterShape& shape = *machine.drafter()->drafter;
    columns_ = static_cast<uint32_t>(shape.taps.size()) * shape.hidden;
    ring_ = taps_ring(shape);
    taps_.resize(size_t{ring_} * columns_);
    draft_cache_.emplace_back(machine.drafter()->shape, machine.options().ranks,
                              machine.options().context + shape.block);
}

void Sequence::mark() {
    Mark& mark = marks_[next_mark_];
    next_mark_ = (next_mark_ + 1) % kMarks;
    mark.length = length_;
    mark.furthest = furthest_;
    mark.used = true;
    cache_.save_rings(mark.memory);
}

uint32_t Sequence::rewind(uint32_t length) {
    CHECK(length <= length_);
    // Rings are longer than their windows by kStepRowsMax and more: so far back nothing is lost.
    if (length + kStepRowsMax < furthest_ && length > 0) {
        const Mark* best = nullptr;
        for (const Mark& mark : marks_)
            if (mark.used && mark.length <= length && (!best || mark.length >= best->length))
                best = &mark;
        length = best != nullptr ? best->length : 0;
        if (best != nullptr) {
            cache_.load_rings(best->memory);
            furthest_ = best->furthest;
        }
    }
    if (length == 0) furthest_ = 0;
    length_ = length;
    // Marks of a future that did not come.
    for (Mark& mark : marks_)
        if (mark.length > length) mark.used = false;
    // The drafter's ring holds a window and a step's rows as well; further back it starts anew.
    if (length + kStepRowsMax < drafted_) seen_from_ = length;
    drafted_ = std::min(drafted_, length);
    seen_from_ = std::min(seen_from_, drafted_);
    return length;
}

void Sequence::make_room(uint32_t rows, bool kept) {
    const uint32_t end = length_ + rows;
    const uint32_t lost = !kept ? end : end > ring_ ? end - ring_ : 0;
    if (lost <= drafted_) return;
    drafted_ = seen_from_ = lost;
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
        CHECK(rows + count <= kStepRowsMax && s.length_ + count <= s.cache_.context());
        if (s.drafts_) {
            // Without a window the drafter sees everything: it takes in what would be overwritten.
            if (machine_.drafter()->drafter->attention.window == 0)
                while (s.length_ + count - s.drafted_ > s.ring_) take_in(s, kStepRowsMax);
            s.make_room(count, reading.keeps_taps);
        }
        const bool keeps = s.drafts_ && reading.keeps_taps;
        tapped = tapped || keeps;
        for (uint32_t i = 0; i < count; ++i, ++rows) {
            tokens_[rows] = reading.tokens[i];
            positions_[rows] = s.length_ + i;
            caches_[rows] = &s.cache_;
            taps_[rows] = keeps ? s.taps_at(s.length_ + i) : nullptr;
        }
    }
    StepInput input{std::span(tokens_).first(rows), std::span(positions_).first(rows),
                    std::span(caches_).first(rows), logits_from};
    if (tapped) input.taps = std::span(taps_).first(rows);
    machine_.step(input);
    for (const Reading& reading : readings) {
        Sequence& s = *reading.sequence;
        s.length_ += static_cast<uint32_t>(reading.tokens.size());
        s.furthest_ = std::max(s.furthest_, s.length_);
    }
}

std::span<const float> Decoder::logits(uint32_t row) {
    return machine_.logits_at(row, logits_);
}

std::span<const float> Decoder::draft_logits(uint32_t slot) {
    return machine_.draft_logits_at(slot, logits_);
}

void Decoder::take_in(Sequence& s, uint32_t rows) {
    const uint32_t count = std::min(rows, s.length_ - s.drafted_);
    for (uint32_t i = 0; i < count; ++i) context_[i] = s.taps_at(s.drafted_ + i);
    StepInput input;
    input.context = {&s.draft_cache_[0], s.drafted_, std::span(context_).first(count),
                     s.seen_from_};
    machine_.draft(input);
    s.drafted_ += count;
}

void Decoder::catch_up(Sequence& s) {
    CHECK(s.drafts_);
    while (s.length_ - s.drafted_ > kDecodeRowsMax) take_in(s, kStepRowsMax);
}

void Decoder::draft(Sequence& s, uint32_t anchor) {
    const uint32_t block = machine_.drafter()->drafter->block;
    const uint32_t count = s.length_ - s.drafted_;
    CHECK(s.drafts_ && count <= kDecodeRowsMax && block <= kStepRowsMax);
    tokens_[0] = anchor;
    std::iota(positions_.begin(), positions_.begin() + block, s.length_);
    std::fill_n(caches_.begin(), block, &s.draft_cache_[0]);
    for (uint32_t i = 0; i < count; ++i) context_[i] = s.taps_at(s.drafted_ + i);
    StepInput input{std::span(tokens_).first(block), std::span(positions_).first(block),
                    std::span(caches_).first(block), 1};
    input.context = {&s.draft_cache_[0], s.drafted_, std::span(context_).first(count),
                     s.seen_from_};
    machine_.draft(input);
    s.drafted_ = s.length_;
}

}  // namespace tessera
