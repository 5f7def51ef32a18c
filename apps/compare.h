// What the halves of `tessera compare` share: a program's walk on both machines against a slow
// twin. Target and drafter each bring their program, their inputs and what their twin computed.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "reference/drafter.h"
#include "runtime/cpu.h"
#include "weights/pack.h"

namespace tessera {

struct CompareOptions {
    std::string model, isa, prompt = "def fibonacci(n):\n    ", activations = "bf16";
    uint32_t workers = 0, ranks = 1;
    uint32_t stop_after = UINT32_MAX;
    double tolerance = 0.5;
};

// The largest difference from a slow twin, in units of the root mean square of the twin's row.
struct Worst {
    double difference = 0;
    uint32_t row = 0, column = 0;  // of the machine's buffer
    float expected = 0, found = 0;

    // `size`: of the row, by root_mean_square.
    void add(double size, uint32_t at_row, uint32_t at_column, float want, float have);
};
double root_mean_square(std::span<const float> row);

// What a twin says of a tile that has just run; none where it shows nothing that the tile
// completes.
struct Judgement {
    std::string_view stage;
    Worst worst;
};
using Judge = std::function<std::optional<Judgement>(const Executor& executor, uint32_t tile)>;

struct Walk {
    const Program& program;
    const PackedWeights& weights;
    const Kernels& kernels;
    std::function<StepInput()> fresh;  // the step from its beginning; good until it is asked again
    Judge judge;
};

// Walks the debug machine beside the twin, then the CPU machine to the end of every phase beside
// the debug machine, bit for bit. Prints what it finds; false if anything differs. `stop_after`:
// the last tile.
bool machines_agree(const Walk& walk, double tolerance, uint32_t stop_after);

// Calls each(row, column, value) for every float that the tile wrote into its buffer of `value`.
void each_written(const Executor& executor, uint32_t tile, Value value, uint32_t rows,
                  const std::function<void(uint32_t, uint32_t, float)>& each);

// The drafter beside a target.
struct ComparedDrafter {
    Checkpoint checkpoint;  // the bytes of `weights`
    DrafterWeights weights;
    PackedWeights packed;
};

// None if the folder has none, or prints why it cannot be cut over that many ranks.
std::unique_ptr<ComparedDrafter> compared_drafter(const std::filesystem::path& folder,
                                                  const PackedWeights& target,
                                                  const PackOptions& pack);

// Takes in `taps` [rows, taps * hidden], which a machine kept of positions from 0, and drafts a
// block behind `anchor`. As machines_agree.
bool drafter_agrees(const ComparedDrafter& drafter, const Weights& target, const Kernels& kernels,
                    std::span<const bf16> taps, uint32_t anchor, const CompareOptions& options);

}  // namespace tessera
