#include "reference/calibrate.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

#include "base/check.h"

namespace tessera {
namespace {

constexpr float kTypicalRows = 16;  // that are mixed in

void add_squares(std::span<const float> rows, std::vector<float>& sums) {
    for (size_t i = 0; i < rows.size(); ++i) sums[i % sums.size()] += rows[i] * rows[i];
}

}  // namespace

Calibration::Calibration(const Reference& reference, std::span<const uint32_t> tokens,
                         uint32_t window, const std::function<void(uint64_t, uint64_t)>& progress)
    : experts_(reference.shape().experts),
      hidden_(reference.shape().hidden),
      width_(reference.shape().expert_width),
      is_moe_(reference.shape().is_moe),
      visits_(reference.shape().layers) {
    for (size_t layer = 0; layer < visits_.size(); ++layer) {
        if (!is_moe_[layer]) continue;
        visits_[layer].resize(experts_);
        for (Visits& one : visits_[layer]) {
            one.in.resize(hidden_);
            one.mixed.resize(width_);
        }
    }
    for (size_t at = 0; at < tokens.size(); at += window) {
        Reference::Cache cache;
        const auto rows = tokens.subspan(at, std::min<size_t>(window, tokens.size() - at));
        reference.forward(cache, rows, {},
                          [&](uint32_t layer, uint32_t expert, std::span<const float> in,
                              std::span<const float> mixed) {
                              Visits& one = visits_[layer][expert];
                              one.rows += in.size() / hidden_;
                              add_squares(in, one.in);
                              add_squares(mixed, one.mixed);
                          });
        if (progress) progress(at + rows.size(), tokens.size());
    }
}

std::vector<float> Calibration::column_weights(const std::string& module) const {
    uint32_t layer = 0, expert = 0;
    const int read =
        std::sscanf(module.c_str(), "model.layers.%u.mlp.experts.%u.", &layer, &expert);
    CHECK(read == 2 && layer < visits_.size() && expert < visits_[layer].size());
    const Visits& own = visits_[layer][expert];
    const bool is_down = module.ends_with("down_proj");
    std::vector<float> typical(is_down ? width_ : hidden_);
    if (is_down) {
        const float sum = std::accumulate(own.mixed.begin(), own.mixed.end(), 0.0f);
        const float mean = sum / (static_cast<float>(width_) * static_cast<float>(own.rows));
        std::ranges::fill(typical, own.rows > 0 && mean > 0 ? mean : 1.0f);
    } else {
        uint64_t rows = 0;
        for (const Visits& one : visits_[layer]) {
            rows += one.rows;
            for (size_t i = 0; i < typical.size(); ++i) typical[i] += one.in[i];
        }
        for (float& value : typical) value = rows > 0 ? value / static_cast<float>(rows) : 1.0f;
    }
    const std::vector<float>& sums = is_down ? own.mixed : own.in;
    for (size_t i = 0; i < typical.size(); ++i)
        typical[i] =
            (sums[i] + kTypicalRows * typical[i]) / (static_cast<float>(own.rows) + kTypicalRows);
    return typical;
}

uint64_t Calibration::unvisited() const {
    uint64_t count = 0;
    for (const auto& layer : visits_)
        count += static_cast<uint64_t>(
            std::ranges::count_if(layer, [](const Visits& one) { return one.rows == 0; }));
    return count;
}

}  // namespace tessera
