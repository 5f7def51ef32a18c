// What runs the steps of a decoder: the card; where there is none, a test's. It knows memory and
// steps, no text and no order of them.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "runtime/gpu/model.h"
#include "runtime/rounds.h"

namespace tessera::gpu {

// Programs that a step can be of: the target's, or the drafter's block or context (plans.h).
enum class Pass : uint8_t { target, block, context };

// One sequence's memory where the steps run. Pointers go into steps; nobody here reads them.
class SequenceMemory {
  public:
    virtual ~SequenceMemory() = default;

    // The sliding layers' rings, to and from the copy that a mark (below kMarks) has.
    virtual void save_rings(uint32_t mark) = 0;
    virtual void load_rings(uint32_t mark) = 0;

    std::byte* cache = nullptr;
    std::byte* draft_cache = nullptr;  // of a sequence that drafts
    uint16_t* taps = nullptr;          // bf16  taps_ring rows, tap columns; the same
};

static_assert(kRowsMax == kDepthRows);

// Rounds of one sequence, and all that a machine has to know of it.
struct RoundsInput {
    RoundsAsk ask;
    Standing from;
    std::byte* cache;
    // Of one that drafts; what it leaves for the drafter is kept.
    std::byte* draft_cache;
    uint16_t* taps;
    uint32_t block;        // rows of the drafter's step
    uint32_t taps_ring;    // position p's taps lie at row p % taps_ring
    uint32_t tap_columns;  // of a row
    uint32_t seen_from;    // the first position that the drafter still has
};

class Runner {
  public:
    virtual ~Runner() = default;

    // Cleared. Throws Error if there is no memory for it.
    virtual std::unique_ptr<SequenceMemory> take_memory(bool drafts) = 0;

    // Runs a step to its end. Of the target's and a block's, the logits of row r, for r >=
    // step.logits_from, become row `first` + r of logits().
    virtual void run(Pass pass, const Step& step, uint32_t first) = 0;

    // f32 [vocab] of a row below kStepRowsMax; the host's, until a step leaves another there.
    virtual std::span<const float> logits(uint32_t row) const = 0;

    // Begins rounds, at least one of them; until next_round() has said that they have ended,
    // nothing else is asked of the runner.
    virtual void start_rounds(const RoundsInput& input) = 0;
    // The next round, once it is over; none behind the last.
    virtual std::optional<Round> next_round() = 0;
    // The last round is one of those that are under way, or were made.
    virtual void stop_rounds() = 0;

    // Distinct experts of the target's last step, summed over layers.
    virtual uint32_t live_experts() const = 0;
};

}  // namespace tessera::gpu
