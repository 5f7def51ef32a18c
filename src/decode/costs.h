// What a pass costs on this machine, measured: the controller's prices. Shared by all sessions of
// a model; guarded by its owner's lock, here is none. Reads no clock: seconds come in as numbers.
#pragma once

#include <array>
#include <cstdint>

#include "tiles/depth.h"

namespace tessera {

// Rows of one verified block: a drafter's block of eight (spec: B).
inline constexpr uint32_t kRowsMax = kDepthRows;

// The median of the last few measurements. Noise on a shared machine is one-sided and heavy-tailed:
// a mean would follow each interruption, a minimum would promise a machine nobody has.
class RunningMedian {
  public:
    static constexpr uint32_t kWindow = 15;

    void add(double value);
    uint32_t count() const { return count_; }  // in the window: at most kWindow
    double median() const;                     // count() > 0

  private:
    uint32_t count_ = 0;
    uint32_t oldest_ = 0;
    std::array<double, kWindow> values_{};
};

class Costs {
  public:
    // One pass of the target over `rows` rows; a pass of 0 or of more than kRowsMax (prefill) is
    // ignored, and so is what is no positive time.
    void step(uint32_t rows, double seconds);

    // One pass of the drafter.
    void draft(double seconds);

    // Seconds that a pass of `rows` rows, 1 to kRowsMax, is expected to take; never less than one
    // of fewer rows. Between measured rows interpolated. Outside them, and before any measurement,
    // the prior: each further row costs kRowPrior of a one-row pass. A row count that is measured
    // uses none of the prior.
    double step_seconds(uint32_t rows) const;

    // Until it is measured, kDraftPrior of a pass of kRowsMax rows.
    double draft_seconds() const;

    // Measurements behind step_seconds(rows): 0 to RunningMedian::kWindow.
    uint32_t samples(uint32_t rows) const;

    // A mixture of experts reads more of them for each row; between the dense 0 and the 1 of rows
    // that share nothing.
    static constexpr double kRowPrior = 0.4;
    static constexpr double kDraftPrior = 0.15;
    // Of a one-row pass before anything is measured. Only ratios matter then.
    static constexpr double kSecondsPrior = 1e-3;

  private:
    void fit();

    std::array<RunningMedian, kRowsMax> steps_;  // by rows - 1
    RunningMedian draft_;
    // What step_seconds() returns, kept: it is asked for more often than measured.
    std::array<double, kRowsMax> fitted_ = prior_curve();

    static constexpr double prior(uint32_t rows) { return 1 + kRowPrior * (rows - 1); }
    static constexpr std::array<double, kRowsMax> prior_curve() {
        std::array<double, kRowsMax> curve{};
        for (uint32_t rows = 1; rows <= kRowsMax; ++rows) {
            curve[rows - 1] = kSecondsPrior * prior(rows);
        }
        return curve;
    }
};

}  // namespace tessera
