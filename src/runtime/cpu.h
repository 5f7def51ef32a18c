// The CPU machine: persistent workers, each walking its queue of the step's program. Between steps
// a worker spins briefly, then parks. A step neither allocates nor throws.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "runtime/execute.h"
#include "runtime/signals.h"
#include "runtime/trace.h"

namespace tessera {

struct CpuOptions {
    uint32_t ranks = 1;
    uint32_t workers = 1;  // of each rank; the caller of step() is the first of the first rank
    uint32_t context = 0;  // positions of a sequence at most
    bool int8_activations = false;
    bool pin = true;                   // workers keep to cores of their own, where there are enough
    const Kernels* kernels = nullptr;  // null: the fastest
    // Delays between tiles, in turns of a loop, drawn from this seed; 0: none. For tests.
    uint64_t adversary = 0;
};

class CpuMachine {
  public:
    // Plans and checks the programs (1 to 8 rows, and kStepRowsMax) and starts the workers.
    // `weights` outlive the machine.
    CpuMachine(const PackedWeights& weights, const CpuOptions& options);
    ~CpuMachine();
    CpuMachine(const CpuMachine&) = delete;
    CpuMachine& operator=(const CpuMachine&) = delete;

    // One step of 1 to kStepRowsMax rows, from one thread at a time.
    void step(const StepInput& input);

    // Of the last step: row >= its logits_from. Writes all of the vocabulary, rank by rank.
    void logits(uint32_t row, std::span<float> out) const;

    // Of the last step: distinct experts, summed over layers.
    uint32_t live_experts() const;

    // Bytes a second at which all workers together read the packed weights, measured for about
    // `seconds`.
    double read_bandwidth(double seconds);

    // Every step from now on is recorded, until the recorder is full. Null: no more.
    void record(Trace* trace) { trace_ = trace; }

    const PackedWeights& weights() const { return weights_; }
    const CpuOptions& options() const { return options_; }

  private:
    // A program with its own events and how often it has run: needed = signals * times.
    struct Line {
        explicit Line(Program made, const PackedWeights& weights, const Kernels& kernels);

        Program program;
        std::vector<std::vector<Tile>> queues;  // by worker, in one piece of memory each
        std::unique_ptr<Event[]> events;
        uint64_t times = 0;
        Executor executor;
    };

    Line& line_for(uint32_t rows);
    void everyone(const std::function<void(uint32_t worker)>& work);
    void walk(uint32_t worker);
    void serve(uint32_t worker);

    const PackedWeights& weights_;
    CpuOptions options_;
    std::vector<std::unique_ptr<Line>> lines_;  // by rows: 1 to 8, then kStepRowsMax
    std::vector<std::unique_ptr<Scratch>> scratch_;
    Trace* trace_ = nullptr;

    Line* current_ = nullptr;  // of the step that runs, or ran last
    std::function<void(uint32_t worker)> walk_;
    const std::function<void(uint32_t worker)>* work_ = nullptr;  // of the turn that runs
    Event begun_, ended_;             // turns (steps, mostly); workers that finished one
    std::atomic<uint32_t> bell_ = 0;  // rung at every turn, for those that park
    std::atomic<bool> stopping_ = false;
    uint64_t turns_ = 0;
    std::vector<std::jthread> workers_;
};

}  // namespace tessera
