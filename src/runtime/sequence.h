// One sequence's memory on the CPU machine: its keys and values, what the target leaves for the
// drafter, the drafter's own keys and values, and marks to come back to. And the decoder, which
// walks the machine for several sequences at once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/arena.h"
#include "runtime/course.h"
#include "runtime/cpu.h"
#include "runtime/kv_cache.h"

namespace tessera {

class Sequence {
  public:
    // With `drafts`, taps are kept for the machine's drafter. All memory is taken here (and
    // committed as it is used). Throws Error.
    Sequence(const CpuMachine& machine, bool drafts);

    // Tokens read.
    uint32_t length() const { return course_.length(); }
    bool drafts() const { return drafts_; }

    // Keeps a copy of what later tokens overwrite, so that rewind can come back to here.
    void mark();

    // Goes back to the last possible place at or before `length` (Course::rewind), and returns it.
    uint32_t rewind(uint32_t length);

  private:
    friend class Decoder;

    // Where to keep the taps of `position`; null if nobody will read them.
    bf16* taps_at(uint32_t position) {
        return &taps_[size_t{course_.taps_row(position)} * columns_];
    }

    KvCache cache_;
    bool drafts_;
    Course course_;
    uint32_t columns_ = 0;  // of a row of taps
    std::vector<bf16> taps_;
    std::vector<KvCache> draft_cache_;  // one, or none

    Arena mark_memory_;
    std::vector<std::byte*> marks_;  // the rings of all ranks, by mark
};

class Decoder {
  public:
    // The machine outlives the decoder. Allocates here, and never again.
    explicit Decoder(CpuMachine& machine);

    // Tokens of one sequence to read: its next ones.
    struct Reading {
        Sequence* sequence;
        std::span<const uint32_t> tokens;
        bool keeps_taps = true;  // of a sequence that drafts: the drafter will want them soon
    };

    // One step of the machine for all of them, kStepRowsMax tokens together at most. Rows before
    // `logits_from`, counted over all readings, need no logits. Every sequence is longer by its
    // tokens afterwards: rewind() takes back what was rejected.
    void read(std::span<const Reading> readings, uint32_t logits_from = 0);

    // Logits [vocab] of a row of the last read(), counted over all readings; valid until the next
    // call of any.
    std::span<const float> logits(uint32_t row);

    // Brings the drafter near enough to the end of the sequence that one block reaches it.
    void catch_up(Sequence& sequence);

    // Drafts a block behind `anchor`, the token at position length(). The sequence has caught up.
    void draft(Sequence& sequence, uint32_t anchor);
    std::span<const float> draft_logits(uint32_t slot);  // 1 to block - 1

    const CpuMachine& machine() const { return machine_; }

  private:
    void take_in(Sequence& sequence, uint32_t rows);

    CpuMachine& machine_;
    std::vector<uint32_t> tokens_, positions_;
    std::vector<const KvCache*> caches_;
    std::vector<bf16*> taps_;
    std::vector<const bf16*> context_;
    std::vector<float> logits_;
};

}  // namespace tessera
