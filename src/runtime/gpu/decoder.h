// Sequences on a card, and the decoder that cuts what is to be read of them into the card's steps
// of kRowsMax rows. What a sequence remembers is Course's, as on the CPU; where it lies is the
// runner's. Nothing here is CUDA: tests let the CPU machine run the steps.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>

#include "runtime/course.h"
#include "runtime/gpu/runner.h"

namespace tessera::gpu {

class Decoder;

class Sequence {
  public:
    uint32_t length() const { return state_->course.length(); }  // tokens read
    bool drafts() const { return state_->memory->draft_cache != nullptr; }

    // As tessera::Sequence has them. To go back, if only to length(), drops rounds that were made
    // and not asked for; before that there is no mark to be made.
    void mark();
    uint32_t rewind(uint32_t length);

  private:
    friend class Decoder;

    struct State {
        Decoder& decoder;
        std::unique_ptr<SequenceMemory> memory;
        Course course;
        std::deque<Round> ahead{};  // rounds that were made and not asked for
        bool keeps_taps = false;    // in rounds
    };
    // Memory that a card still writes to is not given back.
    struct Landed {
        void operator()(State* state) const;
    };

    explicit Sequence(State* state) : state_(state) {}

    std::unique_ptr<State, Landed> state_;
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

    // ---- Rounds: the machine drafts, verifies and chooses, and runs ahead of whoever asks.

    // The next round of a text that ends with `anchor`, the one token that the sequence has not
    // read. Afterwards the round's last token is that one; length() may be further, by rounds that
    // were made and not asked for. `ask` is heeded where a run of rounds begins: behind the last
    // one's end, and after anything else was done with the sequence.
    Round round(Sequence& sequence, uint32_t anchor, const RoundsAsk& ask);
    // Whether the next round is there, or was begun.
    bool runs_ahead(const Sequence& sequence) const;
    // Begins no more of those under way.
    void stop_rounds();

    // Of the last read: its steps, and their distinct experts, summed over layers and steps.
    uint32_t steps() const { return steps_; }
    uint32_t live_experts() const { return live_experts_; }

  private:
    friend class Sequence;

    // Waits until no rounds are under way; what they brought is kept for who asks.
    void land();
    void start_rounds(Sequence& sequence, uint32_t anchor, const RoundsAsk& ask);
    void follow(Sequence::State& state, const Round& round) const;
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
    Sequence::State* flying_ = nullptr;  // whose rounds are under way
};

}  // namespace tessera::gpu
