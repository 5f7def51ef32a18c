// The loops that the slow twins of target and drafter are made of. Activations are row-major
// [rows, width]; `rounding` says whether what is stored is rounded. Only the twins include it.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "model/shape.h"
#include "reference/rounding.h"
#include "weights/bind.h"

namespace tessera::loops {

// Eight partial sums, always these eight and always added in this order: the compiler may use its
// vectors, and a result does not depend on which it has.
float dot(std::span<const float> a, std::span<const float> b);

// y[row] = W x[row], unrounded: [rows, W.columns] -> [rows, W.rows].
std::vector<float> multiply(const Matrix& w, std::span<const float> x);

// RMSNorm of every run of gain.size() values: the normalised value is stored, then the product.
std::vector<float> norm(std::span<const float> x, std::span<const float> gain, float epsilon,
                        Rounding rounding);

void store(std::span<float> values, Rounding rounding);

// x += update, the residual stream: what is added is stored, and the sum.
void add(std::span<float> x, std::span<const float> update, Rounding rounding);

// RoPE of the first a.rotary_dims of each head, NeoX pairing; `rows` is [rows, heads, a.head_dim],
// the first at position `position`.
void rotate(std::span<float> rows, uint32_t heads, uint32_t position, const AttentionShape& a,
            Rounding rounding);

// Keys or values that a query row sees: rows [begin, end) of the tables.
struct Visible {
    std::span<const float> keys;    // positions, kv_heads, head_dim
    std::span<const float> values;  // positions, kv_heads, v_head_dim
    uint32_t begin;
    uint32_t end;
};

// One query row, all heads [heads, head_dim], over what it sees; `out` [heads, v_head_dim] is
// stored. `sink` holds a logit a head, or nothing.
void attend(std::span<const float> query, const Visible& visible, std::span<const float> sink,
            const AttentionShape& a, std::span<float> out, Rounding rounding);

inline float sigmoid(float x) {
    return 1.0f / (1.0f + std::exp(-x));
}

// silu(gate x) * (up x), stored: what down reads.
std::vector<float> mixed(const FeedForward& w, std::span<const float> x, Rounding rounding);

// down(silu(gate x) * (up x)), the last product unrounded.
std::vector<float> feed_forward(const FeedForward& w, std::span<const float> x, Rounding rounding);

}  // namespace tessera::loops
