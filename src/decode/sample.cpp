#include "decode/sample.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "base/check.h"
#include "tiles/noise.h"

namespace tessera {
namespace {

// The first of the highest; of numbers.
uint32_t highest(std::span<const float> values) {
    constexpr size_t kLanes = 16;
    float lanes[kLanes];
    std::ranges::fill(lanes, -std::numeric_limits<float>::infinity());
    size_t i = 0;
    for (; i + kLanes <= values.size(); i += kLanes) {
        for (size_t lane = 0; lane < kLanes; ++lane)
            lanes[lane] = values[i + lane] > lanes[lane] ? values[i + lane] : lanes[lane];
    }
    float top = *std::ranges::max_element(lanes);
    for (; i < values.size(); ++i) top = std::max(top, values[i]);
    return static_cast<uint32_t>(std::ranges::find(values, top) - values.begin());
}

}  // namespace

float gumbel_noise(uint64_t seed, uint64_t position, uint32_t token) {
    return NoiseSource::noise(NoiseSource(seed, position).hash(token));
}

Sampler::Sampler(const Sampling& sampling, uint32_t vocab) : sampling_(sampling), sorted_(vocab) {
    CHECK(!sampling.problem());
}

bool Sampler::plain() const {
    return sampling_.temperature == 0 ||
           (sampling_.top_k == 0 && sampling_.top_p >= 1 && sampling_.min_p <= 0);
}

uint32_t Sampler::choose(std::span<const float> logits, uint64_t position) {
    CHECK(logits.size() == sorted_.size());
    const uint32_t top = highest(logits);
    if (sampling_.temperature == 0) return top;
    const float lowest = lowest_kept(logits);
    const NoiseSource noise(sampling_.seed, position);
    float best_score = -std::numeric_limits<float>::infinity();
    uint32_t best = 0;
    // The most likely token first: its score spares most others their logarithms. A tie goes to the
    // lower id all the same.
    const auto consider = [&](uint32_t token) {
        if (!(logits[token] >= lowest)) return;
        // From the top down: at a tiny temperature the others go to -infinity and the top stays 0.
        const float tempered = (logits[token] - logits[top]) / sampling_.temperature;
        if (tempered + NoiseSource::kMax < best_score) return;
        const uint64_t hash = noise.hash(token);
        if (tempered + NoiseSource::at_most(hash) < best_score) return;
        const float score = tempered + NoiseSource::noise(hash);
        if (score > best_score || (score == best_score && token < best)) {
            best_score = score;
            best = token;
        }
    };
    consider(top);
    for (uint32_t token = 0; token < logits.size(); ++token)
        if (token != top) consider(token);
    return best;
}

// The logit down to which the masks keep tokens; tokens of equal logits are kept or dropped
// together.
float Sampler::lowest_kept(std::span<const float> logits) {
    if (plain()) return -std::numeric_limits<float>::infinity();
    std::ranges::copy(logits, sorted_.begin());
    size_t kept = sorted_.size();
    if (sampling_.top_k > 0 && sampling_.top_k < kept) {
        kept = sampling_.top_k;
        std::nth_element(sorted_.begin(), sorted_.begin() + static_cast<ptrdiff_t>(kept) - 1,
                         sorted_.end(), std::greater<>());
    }
    const float top = *std::ranges::max_element(std::span(sorted_).first(kept));
    const auto weight = [&](float logit) {  // probability up to a common factor
        return std::exp((double{logit} - top) / sampling_.temperature);
    };
    if (sampling_.top_p < 1) kept = nucleus(std::span(sorted_).first(kept), top, weight);
    float lowest = top;
    for (const float logit : std::span(sorted_).first(kept)) {
        if (logit < lowest && (sampling_.min_p <= 0 || weight(logit) >= sampling_.min_p))
            lowest = logit;
    }
    return lowest;
}

// Brings the most likely that together reach top_p to the front, and counts them.
template <typename Weight>
size_t Sampler::nucleus(std::span<float> logits, float top, const Weight& weight) const {
    double total = 0;
    for (const float logit : logits) total += weight(logit);
    // All that are less likely than this together make less than 1 - top_p: the nucleus is among
    // the others, which are few. To sort all took five times as long.
    const double tail = (1 - double{sampling_.top_p}) * total / static_cast<double>(logits.size());
    const double least = top + sampling_.temperature * std::log(tail);
    // clang 14 cannot compile the ranges' partition of this library.
    const auto rest =
        std::partition(logits.begin(), logits.end(), [&](float logit) { return logit >= least; });
    const std::span<float> likely(logits.begin(), rest);
    std::ranges::sort(likely, std::greater<>());
    double sum = 0;
    size_t count = 0;
    while (count < likely.size() && sum < sampling_.top_p * total) sum += weight(likely[count++]);
    return std::max<size_t>(count, 1);
}

}  // namespace tessera
