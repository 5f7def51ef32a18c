// The slow twin: the target network in plain float loops, written from its description (mimo_v2,
// "Forward") and from nothing else. It knows no plan, no tile and no runtime: it is the alibi that
// every fast path is compared with. Refuses to be clever: a row is dequantised, then multiplied.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "reference/rounding.h"
#include "weights/bind.h"

namespace tessera {

class Reference {
  public:
    // Keys and values of one sequence, all positions of all layers: floats, as they were cached.
    struct Cache {
        uint32_t length = 0;                     // tokens
        std::vector<std::vector<float>> keys;    // by layer: length, kv_heads, head_dim
        std::vector<std::vector<float>> values;  // by layer: length, kv_heads, v_head_dim
    };

    // What an observer is shown of every layer, in this order.
    enum class Stage : uint8_t {
        query,     // rows, heads, head_dim: rotated
        mixed,     // rows, heads, v_head_dim: what the output projection reads
        attended,  // rows, hidden: the residual stream after attention
        residual,  // rows, hidden: after the layer
    };
    using Observer =
        std::function<void(uint32_t layer, Stage stage, std::span<const float> values)>;

    // Is shown what each expert that was chosen read and made: `in` [rows, hidden], the rows routed
    // to it, and `mixed` [rows, width], what its down projection read.
    using ExpertObserver = std::function<void(
        uint32_t layer, uint32_t expert, std::span<const float> in, std::span<const float> mixed)>;

    // `weights` must outlive the reference.
    Reference(const Weights& weights, Rounding rounding);

    // Feeds `tokens` at positions cache.length…, appends their keys and values, and returns the
    // normalised hidden states [rows, hidden] that the head reads. A row depends only on the tokens
    // up to it, bit for bit, however many rows come in one call.
    std::vector<float> forward(Cache& cache, std::span<const uint32_t> tokens,
                               const Observer& observe = {},
                               const ExpertObserver& observe_experts = {}) const;

    // Logits [rows, vocab] of rows that forward returned.
    std::vector<float> logits(std::span<const float> hidden) const;

    const Shape& shape() const { return weights_.shape; }

  private:
    struct Choice {
        uint32_t expert;
        float weight;
    };

    std::vector<float> attention(const LayerWeights& w, uint32_t layer, Cache& cache,
                                 std::span<const float> u, const Observer& observe) const;
    std::vector<Choice> route(const LayerWeights& w, std::span<const float> in) const;
    std::vector<float> experts(const LayerWeights& w, uint32_t layer, std::span<const float> u,
                               const ExpertObserver& observe) const;
    std::vector<float> norm(std::span<const float> x, std::span<const float> gain) const;

    const Weights& weights_;
    Rounding rounding_;
};

}  // namespace tessera
