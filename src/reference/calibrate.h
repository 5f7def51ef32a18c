// What experts multiply with on a given text: how large each input column of each expert's matrices
// is. A rounding that knows it spends its error where little comes in.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "reference/reference.h"

namespace tessera {

class Calibration {
  public:
    // Reads `tokens` in windows of at most `window`, each from an empty cache, with the reference:
    // as slow as it is, on one thread, and the same bits every time. `progress` counts tokens.
    Calibration(const Reference& reference, std::span<const uint32_t> tokens, uint32_t window,
                const std::function<void(uint64_t done, uint64_t total)>& progress = {});

    // Mean square of each input column of "model.layers.L.mlp.experts.E.{gate,up,down}_proj", over
    // the rows routed to that expert. A few rows' worth of what is typical (of the layer's experts
    // for gate and up, of the expert's own columns for down) is mixed in, so that an expert that
    // was hardly or never chosen is rounded as if all columns mattered as they do elsewhere.
    std::vector<float> column_weights(const std::string& module) const;

    // Experts that no token chose, of all layers.
    uint64_t unvisited() const;

  private:
    struct Visits {
        uint64_t rows = 0;
        std::vector<float> in, mixed;  // sums of squares by column
    };

    uint32_t experts_, hidden_, width_;
    std::vector<bool> is_moe_;
    std::vector<std::vector<Visits>> visits_;  // layer, expert
};

}  // namespace tessera
