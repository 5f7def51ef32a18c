// The slow twin of the drafter: DFlash's block in plain float loops, written from its description
// (dflash, "Inference") and from nothing else. It knows no plan, no tile and no runtime; when to
// draft and what to accept is decided elsewhere.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "reference/rounding.h"
#include "weights/bind.h"
#include "weights/bind_drafter.h"

namespace tessera {

class ReferenceDrafter {
  public:
    // Keys and values of one sequence's committed positions. A block's own are never kept, so
    // nothing is ever rolled back.
    struct Cache {
        uint32_t length = 0;                     // tokens
        std::vector<std::vector<float>> keys;    // by layer: length, kv_heads, head_dim; rotated
        std::vector<std::vector<float>> values;  // by layer: length, kv_heads, v_head_dim; scaled
    };

    // Is shown the residual stream [block, hidden] after each layer.
    using Observer = std::function<void(uint32_t layer, std::span<const float> residual)>;

    // Embedding and head are those of `target`, which has the drafter's hidden size. Both must
    // outlive this.
    ReferenceDrafter(const DrafterWeights& drafter, const Weights& target, Rounding rounding);

    // Writes keys and values of committed positions cache.length… from `taps`
    // [rows, taps * hidden]: the target's residual stream after each of shape().taps, side by side,
    // as Reference::forward shows it (Stage::residual). A position depends only on its own taps,
    // bit for bit, however many come in one call.
    void extend(Cache& cache, std::span<const float> taps) const;

    // Drafts behind token `anchor`, the newest one, at position cache.length: its own taps do not
    // exist yet. Returns normalised hidden states [block - 1, hidden] of slots 1…; slot j speaks of
    // the token at its own position, cache.length + j.
    std::vector<float> propose(const Cache& cache, uint32_t anchor,
                               const Observer& observe = {}) const;

    // Logits [rows, vocabulary of the target] of rows that propose returned.
    std::vector<float> logits(std::span<const float> hidden) const;

    const DrafterShape& shape() const { return drafter_.shape; }

  private:
    std::vector<float> keys(const DrafterLayerWeights& w, std::span<const float> u,
                            uint32_t position) const;
    std::vector<float> values(const DrafterLayerWeights& w, std::span<const float> u) const;
    std::vector<float> attention(const DrafterLayerWeights& w, uint32_t layer, const Cache& cache,
                                 std::span<const float> u) const;
    std::vector<float> norm(std::span<const float> x, std::span<const float> gain) const;

    const DrafterWeights& drafter_;
    const Weights& target_;
    Rounding rounding_;
};

}  // namespace tessera
