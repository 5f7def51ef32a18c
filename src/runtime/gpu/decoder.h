// Sequences on a card, and the decoder that cuts what is to be read of them into the card's steps
// of kRowsMax rows. What a sequence remembers is Course's, as on the CPU; where it lies is the
// runner's. Nothing here is CUDA: tests let the CPU machine run the steps.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "runtime/course.h"
#include "runtime/gpu/runner.h"

namespace tessera::gpu {

class Sequence {
  public:
    uint32_t length() const { return course_.length(); }  // tokens read
    bool drafts() const { return memory_->draft_cache != nullptr; }

    // As tessera::Sequence has them.
    void mark();
    uint32_t rewind(uint32_t length);

  private:
    friend class Decoder;
    Sequence(std::unique_ptr<SequenceMemory> memory, uint32_t taps_ring)
        : memory_(std::move(memory)), course_(taps_ring) {}

    std::unique_ptr<SequenceMemory> memory_;
    Course course_;
};

class Decoder {
  public:
    // Sequences have at most `context` tokens. `drafter` may be null; both outlive the decoder.
    Decoder(Runner& runner, uint32_t context, const DrafterShape* drafter);

    // With `drafts`, taps are kept for the drafter. Throws Error if there is no memory for it.
    Sequence begin(bool drafts);

    struct Reading {
        Sequence* sequence;
        std::span<const uint32_t> tokens;
        bool keeps_taps = true;
    };
    // Reads all of them, kStepRowsMax tokens together at most, in as few steps as they fill. Rows
    // before `logits_from`, counted over all readings, need no logits. Every sequence is longer by
    // its tokens afterwards: rewind() takes back what was rejected.
    void read(std::span<const Reading> readings, uint32_t logits_from);
    // Of a row of the last read; valid until the next call of any.
    std::span<const float> logits(uint32_t row) const { return runner_.logits(row); }

    // Brings the drafter near enough to the end of the sequence that one block reaches it.
    void catch_up(Sequence& sequence);
    // Drafts a block behind `anchor`, the token at position length(). The sequence has caught up.
    void draft(Sequence& sequence, uint32_t anchor);
    std::span<const float> draft_logits(uint32_t slot) const { return runner_.logits(slot); }

    // Of the last read: its steps, and their distinct experts, summed over layers and steps.
    uint32_t steps() const { return steps_; }
    uint32_t live_experts() const { return live_experts_; }

  private:
    uint16_t* taps_at(const Sequence& sequence, uint32_t position) const;
    void add(const Reading& reading, uint32_t begin, uint32_t count, Step& step) const;
    void run(Step& step, uint32_t first, uint32_t logits_from);
    // A step of the drafter that takes in the next `rows` of what the sequence has for it.
    Step with_context(Sequence& sequence, uint32_t rows) const;
    void take_in(Sequence& sequence);

    Runner& runner_;
    uint32_t context_;
    const DrafterShape* drafter_;
    uint32_t tap_columns_ = 0;
    uint32_t steps_ = 0, live_experts_ = 0;
};

}  // namespace tessera::gpu
