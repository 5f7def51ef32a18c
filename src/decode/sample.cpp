#include "decode/sample.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "base/check.h"

namespace tessera {
namespace {

// The finalizer of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;

// u is at most 1 - 2^-53, so no noise exceeds -log(2^-53).
constexpr float kNoiseMax = 37.0f;

}  // namespace

float gumbel_noise(uint64_t seed, uint64_t position, uint32_t token) {
    const uint64_t hash =
        mix(mix(mix(seed + kGolden) + (position + 1) * kGolden) + (token + 1ull) * kGolden);
    // 52 bits and a half are exact; with 53 the half would round the largest u to 1, its noise to
    // infinity.
    const double u = (static_cast<double>(hash >> 12) + 0.5) * 0x1p-52;
    return static_cast<float>(-std::log(-std::log(u)));
}

Sampler::Sampler(const Sampling& sampling, uint32_t vocab) : sampling_(sampling), sorted_(vocab) {
    CHECK(!sampling.problem());
}

uint32_t Sampler::choose(std::span<const float> logits, uint64_t position) {
    CHECK(logits.size() == sorted_.size());
    const auto top = std::ranges::max_element(logits);
    if (sampling_.temperature == 0) return static_cast<uint32_t>(top - logits.begin());
    const float lowest = lowest_kept(logits);
    float best_score = -std::numeric_limits<float>::infinity();
    uint32_t best = 0;
    for (uint32_t token = 0; token < logits.size(); ++token) {
        if (!(logits[token] >= lowest)) continue;
        // From the top down: at a tiny temperature the others go to -infinity and the top stays 0.
        const float tempered = (logits[token] - *top) / sampling_.temperature;
        if (tempered + kNoiseMax < best_score)
            continue;  // no noise could lift it: spare two logarithms
        const float score = tempered + gumbel_noise(sampling_.seed, position, token);
        if (score > best_score) {
            best_score = score;
            best = token;
        }
    }
    return best;
}

// The logit down to which the masks keep tokens; tokens of equal logits are kept or dropped
// together.
float Sampler::lowest_kept(std::span<const float> logits) {
    if (sampling_.top_k == 0 && sampling_.top_p >= 1 && sampling_.min_p <= 0) {
        return -std::numeric_limits<float>::infinity();
    }
    std::ranges::copy(logits, sorted_.begin());
    size_t kept = sorted_.size();
    if (sampling_.top_k > 0 && sampling_.top_k < kept) {
        kept = sampling_.top_k;
        std::nth_element(sorted_.begin(), sorted_.begin() + static_cast<ptrdiff_t>(kept) - 1,
                         sorted_.end(), std::greater<>());
    }
    std::sort(sorted_.begin(), sorted_.begin() + static_cast<ptrdiff_t>(kept), std::greater<>());
    const auto weight = [&](float logit) {  // probability up to a common factor
        return std::exp((double{logit} - sorted_[0]) / sampling_.temperature);
    };
    if (sampling_.top_p < 1) {
        double total = 0;
        for (size_t i = 0; i < kept; ++i) total += weight(sorted_[i]);
        double sum = 0;
        size_t count = 0;
        while (count < kept && sum < sampling_.top_p * total) sum += weight(sorted_[count++]);
        kept = std::max<size_t>(count, 1);
    }
    while (kept > 1 && weight(sorted_[kept - 1]) < sampling_.min_p) --kept;
    return sorted_[kept - 1];
}

}  // namespace tessera
