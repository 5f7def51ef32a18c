// What decodes: the CPU machine, a card, or the slow twin. The engine's own seam; nobody else sees
// it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "reference/reference.h"
#include "runtime/rounds.h"
#include "runtime/sequence.h"
#include "tessera/model.h"

namespace tessera {

// What a backend knows of one text.
class Text {
  public:
    virtual ~Text() = default;
    virtual uint32_t length() const = 0;  // tokens read
    virtual bool drafts() const { return false; }
    virtual void mark() {}
    // Goes back to the last possible length at or before `length`, and returns it.
    virtual uint32_t rewind(uint32_t length) = 0;
};

// What all sessions of a model share. One caller at a time.
class Backend {
  public:
    virtual ~Backend() = default;
    virtual std::unique_ptr<Text> begin(bool drafts) = 0;

    struct Reading {
        Text* text;
        std::span<const Token> tokens;
        bool keeps_taps = true;
    };
    // One step for all of them, kStepRowsMax tokens together at most. Rows before `logits_from`,
    // counted over all readings, need no logits.
    virtual void read(std::span<const Reading> readings, uint32_t logits_from) = 0;
    virtual std::span<const float> logits(uint32_t row) = 0;  // until the next call

    virtual bool has_drafter() const { return false; }
    virtual uint32_t draft_window() const { return 0; }  // tokens that the drafter looks back
    virtual uint32_t draft_block() const { return 0; }   // rows: the anchor and what it drafts
    virtual void catch_up(Text&) {}
    virtual void draft(Text&, Token) {}
    virtual std::span<const float> draft_logits(uint32_t) { return {}; }

    // ---- rounds (runtime/rounds.h): the machine drafts, verifies and chooses by itself, and runs
    // ahead of whoever asks

    virtual bool makes_rounds() const { return false; }
    // The next round of a text that ends with `anchor`, the one token that was not read. `ask` is
    // heeded where a run of rounds begins. Text::rewind drops what ran ahead.
    virtual Round round(Text&, Token, const RoundsAsk&) { return {}; }
    // Whether the next round is there, or was begun.
    virtual bool runs_ahead(const Text&) const { return false; }
    // No more rounds than were begun.
    virtual void stop_rounds() {}

    // Of the last read or round: bytes of weights and cache, and distinct experts a layer; of a
    // drafted block: bytes of weights.
    virtual double bytes() const { return 0; }
    virtual double experts() const { return 0; }
    virtual double draft_bytes() const { return 0; }
    virtual double read_bandwidth() { return 0; }
};

std::unique_ptr<Backend> make_reference_backend(Checkpoint checkpoint, Weights weights);

// A drafter's packed weights point into the target's.
struct CpuWeights {
    PackedWeights target;
    std::unique_ptr<PackedWeights> drafter;  // may be null
};
std::unique_ptr<Backend> make_cpu_backend(std::unique_ptr<CpuWeights> weights,
                                          const CpuOptions& options);

}  // namespace tessera
