// From logits to tokens, by all blocks together: the rule of decode/sample.h without top-k. Each
// block looks at its share of the vocabulary, one warp a row; then all blocks read what all have
// found, and know the same.
//
// The nucleus is not sorted out. The best score of all tokens is the nucleus's best if its token
// belongs to it, which the weight above it says: one more look. If it does not, no token that is
// less likely does either, and the best of the more likely ones is asked the same. Of a nucleus of
// 0.95 that is one row of twenty at most.
#pragma once

#include "runtime/gpu/block.cuh"
#include "tiles/noise.h"

namespace tessera::gpu {

// A number and a token as one: the higher number is the higher, and of equal ones the lower token.
__device__ inline uint64_t choice_key(float value, uint32_t token) {
    return uint64_t{ordered(value + 0.0f)} << 32 | ~token;  // 0 and -0 are equal
}
__device__ inline uint32_t token_of_key(uint64_t key) {
    return ~static_cast<uint32_t>(key);
}
__device__ inline float value_of_key(uint64_t key) {
    const auto bits = static_cast<uint32_t>(key >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

__device__ inline uint64_t warp_highest(uint64_t key) {
#pragma unroll
    for (uint32_t offset = 16; offset > 0; offset /= 2)
        key = max(key, __shfl_xor_sync(~0u, key, offset));
    return key;
}

// What is chosen from.
struct Ballot {
    const float* logits;  // rows, vocab
    uint32_t rows, vocab;
    uint32_t position;  // of the first row's token; the others' follow
    float temperature, top_p, min_p;
    uint64_t seed;

    __device__ bool masks() const { return temperature > 0 && (top_p < 1 || min_p > 0); }
};

__device__ inline double warp_sum(double x) {
#pragma unroll
    for (uint32_t offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
    return x;
}

class Chooser {
  public:
    // Of one warp: row `row`, and this block's share.
    __device__ Chooser(const Ballot& ballot, uint32_t row)
        : ballot_(ballot),
          logits_(ballot.logits + uint64_t{row} * ballot.vocab),
          own_(share_of(ballot.vocab, blockIdx.x, gridDim.x)),
          noise_(ballot.seed, ballot.position + row) {}

    // The most likely token of the share; zero if it is empty.
    __device__ uint64_t top() const {
        uint64_t best = 0;
#pragma unroll 4
        for (uint32_t i = own_.begin + threadIdx.x % 32; i < own_.end; i += 32)
            best = max(best, choice_key(logits_[i], i));
        return warp_highest(best);
    }

    // The highest score of those of the share whose logit is above `floor`, or that of `top`, the
    // most likely of all, which spares most others their logarithms.
    __device__ uint64_t best(uint64_t top, float floor) const {
        uint64_t best = scored(value_of_key(top), value_of_key(top), token_of_key(top), 0);
#pragma unroll 1
        for (uint32_t i = own_.begin + threadIdx.x % 32; i < own_.end; i += 32)
            if (logits_[i] > floor) best = scored(logits_[i], value_of_key(top), i, best);
        return warp_highest(best);
    }

    // What the share's tokens with a logit above `floor` weigh, where the most likely of all weighs
    // 1.
    __device__ double weight_above(float top, float floor) const {
        double sum = 0;
#pragma unroll 1
        for (uint32_t i = own_.begin + threadIdx.x % 32; i < own_.end; i += 32)
            if (logits_[i] > floor) sum += weight(logits_[i], top);
        return warp_sum(sum);
    }

    // Whether the masks leave a token, above which `above` of `all` weighs.
    __device__ bool keeps(uint64_t top, uint32_t token, double above, double all) const {
        if (token == token_of_key(top)) return true;
        return (ballot_.top_p >= 1 || above < ballot_.top_p * all) &&
               (ballot_.min_p <= 0 || weight(logits_[token], value_of_key(top)) >= ballot_.min_p);
    }

    __device__ float logit(uint32_t token) const {
        return logits_[token];
    }

    // The share's sum of exp((logit - top) / temperature), at temperature 0 of 1.
    __device__ float sum(float top) const {
        const float scale = 1.0f / (ballot_.temperature > 0 ? ballot_.temperature : 1.0f);
        float sum = 0;
#pragma unroll 4
        for (uint32_t i = own_.begin + threadIdx.x % 32; i < own_.end; i += 32)
            sum += __expf((logits_[i] - top) * scale);
        return warp_sum(sum);
    }

    // What `sum` of all shares makes of a token: its probability.
    __device__ float probability(uint32_t token, float top, float sum) const {
        const float scale = 1.0f / (ballot_.temperature > 0 ? ballot_.temperature : 1.0f);
        return __expf((logits_[token] - top) * scale) / sum;
    }

  private:
    __device__ double weight(float logit, float top) const {
        return exp((double{logit} - top) / ballot_.temperature);
    }

    // The higher of `best` and a token's score, which is as Sampler::choose has it, to the bit.
    __device__ uint64_t scored(float logit, float top, uint32_t token, uint64_t best) const {
        const float tempered = __fdiv_rn(__fsub_rn(logit, top), ballot_.temperature);
        const uint64_t hash = noise_.hash(token);
        if (best != 0) {
            const float so_far = value_of_key(best);
            if (__fadd_rn(tempered, NoiseSource::at_most(hash)) < so_far) return best;
        }
        return max(best, choice_key(__fadd_rn(tempered, NoiseSource::noise(hash)), token));
    }

    const Ballot& ballot_;
    const float* logits_;
    Range own_;
    NoiseSource noise_;
};

}  // namespace tessera::gpu
