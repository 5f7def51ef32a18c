// Bytes and flops of what a step reads: the only source of GB/s in the house. Weights count as the
// checkpoint stores them, scales included.
#pragma once

#include <cstdint>
#include <vector>

#include "base/numbers.h"
#include "model/shape.h"

namespace tessera {

// How a linear layer is stored, from the quantization config alone.
enum class Linear : uint8_t { qkv, output, dense, expert, router, head };
Format stored_format(const Shape& shape, Linear linear, uint32_t layer);

// Bytes of a [rows, columns] matrix with its scales.
double matrix_bytes(Format format, double rows, double columns);

// Distinct experts that `rows` tokens choose in one layer if each chooses at random:
// E (1 - (1 - k / E)^rows).
double distinct_experts(const Shape& shape, double rows);

// Bytes that one step reads, on one of `ranks` ranks, by kind.
struct Traffic {
    double qkv = 0, output = 0, dense = 0, router = 0, experts = 0, head = 0, norms = 0;
    double cache = 0;    // keys and values of one sequence, bf16
    double drafter = 0;  // its layers, and the head a second time; 0 without one

    double weights() const {
        return qkv + output + dense + router + experts + head + norms + drafter;
    }
    double total() const { return weights() + cache; }
};

struct TrafficCase {
    double rows = 1;
    double context = 0;  // tokens before the step
    double experts = 0;  // distinct, in each layer of experts; 0: distinct_experts(shape, rows)
    uint32_t ranks = 1;
};

Traffic step_traffic(const Shape& shape, const TrafficCase& at);

// The same sum for steps of one shape that run, without allocating: one rank's bytes, or with
// `ranks` 1 the whole machine's.
class StepBytes {
  public:
    StepBytes(const Shape& shape, uint32_t ranks);

    // `experts`: distinct ones in a layer of experts, on average.
    double operator()(uint32_t context, double experts) const;

  private:
    struct Cache {
        uint32_t window;  // 0: none
        double key_bytes;
    };
    double fixed_ = 0, an_expert_ = 0;
    std::vector<Cache> caches_;  // by layer
};

// Bytes of one pass of the drafter: its weights (bf16) without the head.
double drafter_bytes(const DrafterShape& drafter);

// Multiply-adds of one step, on one rank.
double step_multiplications(const Shape& shape, const TrafficCase& at);

}  // namespace tessera
