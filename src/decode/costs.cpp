#include "decode/costs.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace tessera {
namespace {

bool is_time(double seconds) {
    return std::isfinite(seconds) && seconds > 0;
}

// A stretch of measured row counts that share one price.
struct Level {
    double seconds;
    double weight;   // measurements
    uint32_t count;  // row counts
};

}  // namespace

void RunningMedian::add(double value) {
    values_[oldest_] = value;
    oldest_ = (oldest_ + 1) % kWindow;
    count_ = std::min(count_ + 1, kWindow);
}

double RunningMedian::median() const {
    CHECK(count_ > 0);
    std::array<double, kWindow> sorted = values_;
    std::sort(sorted.begin(), sorted.begin() + count_);
    return (sorted[(count_ - 1) / 2] + sorted[count_ / 2]) / 2;
}

void Costs::step(uint32_t rows, double seconds) {
    if (rows < 1 || rows > kRowsMax || !is_time(seconds)) return;
    steps_[rows - 1].add(seconds);
    fit();
}

void Costs::draft(double seconds) {
    if (is_time(seconds)) draft_.add(seconds);
}

double Costs::step_seconds(uint32_t rows) const {
    CHECK(rows >= 1 && rows <= kRowsMax);
    return fitted_[rows - 1];
}

double Costs::draft_seconds() const {
    return draft_.count() > 0 ? draft_.median() : kDraftPrior * step_seconds(kRowsMax);
}

uint32_t Costs::samples(uint32_t rows) const {
    CHECK(rows >= 1 && rows <= kRowsMax);
    return steps_[rows - 1].count();
}

// The medians, made monotone by pooling neighbours that are out of order into their mean, weighted
// by measurements (isotonic regression): one unlucky measurement of a small count does not lift
// the well-known larger ones, as a running maximum would.
void Costs::fit() {
    std::array<Level, kRowsMax> levels;
    std::array<uint32_t, kRowsMax> measured;  // row counts, ascending
    uint32_t level_count = 0;
    uint32_t measured_count = 0;
    for (uint32_t rows = 1; rows <= kRowsMax; ++rows) {
        const RunningMedian& seen = steps_[rows - 1];
        if (seen.count() == 0) continue;
        measured[measured_count++] = rows;
        levels[level_count++] = {seen.median(), static_cast<double>(seen.count()), 1};
        while (level_count > 1 &&
               levels[level_count - 2].seconds > levels[level_count - 1].seconds) {
            const Level above = levels[--level_count];
            Level& below = levels[level_count - 1];
            const double weight = below.weight + above.weight;
            below.seconds = (below.seconds * below.weight + above.seconds * above.weight) / weight;
            below.weight = weight;
            below.count += above.count;
        }
    }
    std::array<double, kRowsMax> seconds;  // of measured[i]
    for (uint32_t level = 0, i = 0; level < level_count; ++level) {
        for (uint32_t n = 0; n < levels[level].count; ++n) seconds[i++] = levels[level].seconds;
    }

    for (uint32_t rows = 1, above = 0; rows <= kRowsMax; ++rows) {
        while (above < measured_count && measured[above] < rows) ++above;
        double& fitted = fitted_[rows - 1];
        if (above < measured_count && measured[above] == rows) {
            fitted = seconds[above];
        } else if (above == 0) {
            fitted = seconds[0] * prior(rows) / prior(measured[0]);
        } else if (above == measured_count) {
            fitted = seconds[above - 1] * prior(rows) / prior(measured[above - 1]);
        } else {
            const double part = static_cast<double>(rows - measured[above - 1]) /
                                (measured[above] - measured[above - 1]);
            fitted = seconds[above - 1] + part * (seconds[above] - seconds[above - 1]);
        }
    }
}

}  // namespace tessera
