// How well one row of logits foresaw a token, and how far two models' rows are apart. Numbers of
// rows of logits only: what made them and what the tokens say is not known here.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace tessera {

// -log p(next) under softmax(logits), in nats.
double surprise(std::span<const float> logits, uint32_t next);

struct RowDifference {
    double standard, candidate;  // surprise of the next token, nats
    double kl;                   // KL(standard || candidate), nats; 0 or more but for rounding
    double gap;                  // largest difference of two logits of one token
    uint32_t standard_top, candidate_top;  // the most likely tokens; the lower id of equals
};

// Two rows over one vocabulary, at the same place of the same text.
RowDifference compare_rows(std::span<const float> standard, std::span<const float> candidate,
                           uint32_t next);

// ------------------------------------------------------------------ over a text

// Of a run of tokens, or of many. Without a second model `standard` is 0, and so is what compares.
struct Sums {
    double tokens = 0;
    double bytes = 0;                    // of text that those tokens are
    double standard = 0, candidate = 0;  // surprise, nats
    double kl = 0;
    double agreed = 0;  // tokens where both most likely ones are the same

    Sums& operator+=(const Sums& other);

    double perplexity() const;     // of the candidate, a token
    double bits_per_byte() const;  // of the candidate
    double cost() const;           // candidate's perplexity / standard's - 1
    double mean_kl() const;        // nats
    double agreement() const;      // 0 to 1
};

struct Interval {
    double value = 0;
    double low = 0, high = 0;  // NaN where there are fewer than two runs
};

// The statistic of all runs together, and the range in which 95 of 100 of it lie when as many runs
// are drawn from them again and again (2000 times, seeded). Runs and not tokens: neighbours are
// alike, and an interval of tokens would be too narrow.
Interval bootstrap(std::span<const Sums> runs, double (Sums::*statistic)() const);

}  // namespace tessera
