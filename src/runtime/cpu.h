// The CPU machine: workers that each walk their queue of the step's program. A step neither
// allocates nor throws.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "runtime/execute.h"
#include "runtime/trace.h"
#include "runtime/workers.h"

namespace tessera {

// One program with its events, its memory and how often it has run: needed = signals * times.
class CpuProgram {
  public:
    // A whole program is checked here: a fault aborts. `weights` and `kernels` outlive it.
    enum class Extent : uint8_t { whole, truncated };
    CpuProgram(Program program, const PackedWeights& weights, const Kernels& kernels,
               Extent extent = Extent::whole);

    void begin(const StepInput& step) {
        ++times_;
        executor_.begin(step);
    }

    // One worker's part of the step. Every worker must take its part. `trace` may be null.
    // `adversary`: delays between tiles drawn from this seed; 0: none.
    void walk(uint32_t worker, Scratch& scratch, Trace* trace, uint64_t adversary);

    const Program& program() const { return program_; }
    const Executor& executor() const { return executor_; }

  private:
    Program program_;
    std::vector<std::vector<Tile>> queues_;  // by worker, in one piece of memory each
    std::unique_ptr<Event[]> events_;
    uint64_t times_ = 0;
    Executor executor_;
};

struct CpuOptions {
    uint32_t ranks = 1;    // as many as the machine has memory nodes: each has one to itself
    uint32_t workers = 1;  // of each rank; the caller of step() is the first of the first rank
    uint32_t context = 0;  // positions of a sequence at most
    bool int8_activations = false;
    bool pin = true;                   // see Workers
    const Kernels* kernels = nullptr;  // null: the fastest
    uint64_t adversary = 0;            // for tests: see CpuProgram::walk
};

// Rows that a step of decoding verifies at most, and so rows of context that a drafted block finds
// new.
inline constexpr uint32_t kDecodeRowsMax = 8;

class CpuMachine {
  public:
    // Plans and checks the programs (1 to kDecodeRowsMax rows, and kStepRowsMax; of the drafter a
    // block, and kStepRowsMax rows of context) and starts the workers. All outlive the machine;
    // `drafter` may be null.
    CpuMachine(const PackedWeights& weights, const CpuOptions& options,
               const PackedWeights* drafter = nullptr);

    // One step of 1 to kStepRowsMax rows, from one thread at a time.
    void step(const StepInput& input);

    // Of the last step: row >= its logits_from. All of the vocabulary, rank by rank: where it lies,
    // if that is one place, or gathered in `memory` [vocab].
    std::span<const float> logits_at(uint32_t row, std::span<float> memory) const;
    // The same, copied.
    void logits(uint32_t row, std::span<float> out) const;

    // The drafter reads `input.context`: at most kDecodeRowsMax rows and then a block, or at most
    // kStepRowsMax and no block. There is a drafter.
    void draft(const StepInput& input);

    // Of the last block: row >= its logits_from.
    std::span<const float> draft_logits_at(uint32_t row, std::span<float> memory) const;

    // Of the last step: distinct experts, summed over layers.
    uint32_t live_experts() const;

    // Bytes a second at which all workers together read the packed weights, measured for about
    // `seconds`.
    double read_bandwidth(double seconds);

    // Every step from now on is recorded, until the trace is full. Null: no more.
    void record(Trace* trace) { trace_ = trace; }

    const PackedWeights& weights() const { return weights_; }
    const PackedWeights* drafter() const { return drafter_; }
    const CpuOptions& options() const { return options_; }
    // Of the last step.
    const CpuProgram& current() const { return *current_; }

  private:
    void run(CpuProgram& program, const StepInput& input);
    static std::span<const float> logits_of(const CpuProgram& program, uint32_t row,
                                            std::span<float> memory);

    const PackedWeights& weights_;
    const PackedWeights* drafter_;
    CpuOptions options_;
    std::vector<std::unique_ptr<CpuProgram>> programs_;  // by rows: 1 to 8, then kStepRowsMax
    std::unique_ptr<CpuProgram> block_, context_;        // of the drafter
    std::vector<std::unique_ptr<Scratch>> scratch_, draft_scratch_;  // by worker
    Trace* trace_ = nullptr;
    CpuProgram* current_ = nullptr;  // of the step that runs, or ran last
    CpuProgram* running_ = nullptr;  // the same, or the drafter's
    std::function<void(uint32_t worker)> walk_;
    Workers workers_;  // last: its threads stop before what they use goes
};

// The same for any workers and arenas.
double read_bandwidth(Workers& workers, const PackedWeights& weights, double seconds);

}  // namespace tessera
