// From logits to a token. Sampling is an argmax: noise that depends only on (seed, position, token)
// is added to the tempered logits (the Gumbel trick), so that two models which share the noise, the
// drafter and the target, agree whenever their distributions do, and a text can be checked as an
// equality. Knows no strings.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tessera/sampling.h"

namespace tessera {

// Standard Gumbel noise, -log(-log(u)) with u from a hash of the three.
float gumbel_noise(uint64_t seed, uint64_t position, uint32_t token);

class Sampler {
  public:
    // `sampling` has no problem(). Allocates here and never again.
    Sampler(const Sampling& sampling, uint32_t vocab);

    // Whether a token is the argmax of its logits and the noise, with no mask between; and whether
    // it is with none but top-p and min-p.
    bool plain() const;
    bool sorts_nothing() const { return sampling_.temperature == 0 || sampling_.top_k == 0; }

    uint32_t vocab() const { return static_cast<uint32_t>(sorted_.size()); }

    // The token at `position` of the text, from its logits [vocab], of which those that are
    // -infinity are never chosen; at least one is not. Masks come in the order top-k,
    // top-p (of what top-k left), min-p, all on the tempered distribution; the most likely token
    // always stays. The lower id wins a tie.
    uint32_t choose(std::span<const float> logits, uint64_t position);

  private:
    float lowest_kept(std::span<const float> logits);
    template <typename Weight>
    size_t nucleus(std::span<float> logits, float top, const Weight& weight) const;

    Sampling sampling_;
    std::vector<float> sorted_;
};

}  // namespace tessera
