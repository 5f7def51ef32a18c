#include "judge/score.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace tessera {
namespace {

constexpr uint32_t kDraws = 2000;

uint32_t top_of(std::span<const float> logits) {
    return static_cast<uint32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// log(sum of exp) in doubles: a vocabulary has a hundred thousand terms.
double log_sum(std::span<const float> logits, float top) {
    double sum = 0;
    for (const float logit : logits) sum += std::exp(double{logit} - top);
    return top + std::log(sum);
}

}  // namespace

double surprise(std::span<const float> logits, uint32_t next) {
    CHECK(next < logits.size());
    return log_sum(logits, logits[top_of(logits)]) - logits[next];
}

RowDifference compare_rows(std::span<const float> standard, std::span<const float> candidate,
                           uint32_t next) {
    CHECK(standard.size() == candidate.size() && next < standard.size());
    RowDifference found{};
    found.standard_top = top_of(standard);
    found.candidate_top = top_of(candidate);
    const double p_sum = log_sum(standard, standard[found.standard_top]);
    const double q_sum = log_sum(candidate, candidate[found.candidate_top]);
    for (size_t i = 0; i < standard.size(); ++i) {
        const double p = standard[i] - p_sum, q = candidate[i] - q_sum;
        found.kl += std::exp(p) * (p - q);
        found.gap = std::max(found.gap, std::abs(double{standard[i]} - candidate[i]));
    }
    found.standard = p_sum - standard[next];
    found.candidate = q_sum - candidate[next];
    return found;
}

Sums& Sums::operator+=(const Sums& other) {
    tokens += other.tokens;
    bytes += other.bytes;
    standard += other.standard;
    candidate += other.candidate;
    kl += other.kl;
    agreed += other.agreed;
    return *this;
}

double Sums::perplexity() const {
    return std::exp(candidate / tokens);
}
double Sums::bits_per_byte() const {
    return candidate / std::log(2.0) / bytes;
}
double Sums::cost() const {
    return std::exp((candidate - standard) / tokens) - 1;
}
double Sums::mean_kl() const {
    return kl / tokens;
}
double Sums::agreement() const {
    return agreed / tokens;
}

Interval bootstrap(std::span<const Sums> runs, double (Sums::*statistic)() const) {
    CHECK(!runs.empty());
    Sums all;
    for (const Sums& run : runs) all += run;
    Interval found{(all.*statistic)(), std::numeric_limits<double>::quiet_NaN(),
                   std::numeric_limits<double>::quiet_NaN()};
    if (runs.size() < 2) return found;
    uint64_t state = 1;
    std::vector<double> drawn;
    for (uint32_t draw = 0; draw < kDraws; ++draw) {
        Sums sum;
        for (size_t i = 0; i < runs.size(); ++i) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            sum += runs[(state >> 33) % runs.size()];
        }
        drawn.push_back((sum.*statistic)());
    }
    std::sort(drawn.begin(), drawn.end());
    found.low = drawn[kDraws * 25 / 1000];
    found.high = drawn[kDraws * 975 / 1000 - 1];
    return found;
}

}  // namespace tessera
