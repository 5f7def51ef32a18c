// The debug machine: one worker that runs tiles in their defining order, over memory that is poison
// (NaN) until written, and looks at every operand. Slow on purpose; what it accepts, the others
// merely do faster.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "runtime/execute.h"

namespace tessera {

class SingleMachine {
  public:
    // All outlive the machine. The program is checked here: a fault aborts.
    SingleMachine(const Program& program, const PackedWeights& weights, const Kernels& kernels);

    // Runs the step's tiles up to and including `stop_after`. Returns the first operand that is
    // still poison, in a sentence; none if all are numbers. `after` sees every tile that has run.
    std::optional<std::string> step(const StepInput& input, uint32_t stop_after = UINT32_MAX,
                                    const std::function<void(uint32_t tile)>& after = {});

    const Executor& executor() const { return executor_; }

  private:
    std::optional<std::string> poison_in(uint32_t tile, bool written, const StepInput& input) const;

    const Program& program_;
    Executor executor_;
    Scratch scratch_;
};

}  // namespace tessera
