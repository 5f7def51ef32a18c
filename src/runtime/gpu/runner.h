// What runs the steps of a decoder: the card; where there is none, a test's. It knows memory and
// steps, no text and no order of them.
#pragma once

#include <memory>
#include <span>

#include "runtime/gpu/model.h"

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

    // Distinct experts of the target's last step, summed over layers.
    virtual uint32_t live_experts() const = 0;
};

}  // namespace tessera::gpu
