// Eight gibibytes that stand for weights: random words that a formula knows, and the sums that say
// whether a stream has read each of them once. The sums are made by the plainest of kernels, which
// is itself held against the host.
#pragma once

#include "card.cuh"

namespace tessera::ground {

// Word i of the weights: the finishing steps of a 32-bit hash.
__host__ __device__ constexpr uint32_t scrambled(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

struct FillTask {
    uint32_t* words;
    uint64_t count;
};

static __global__ void fill(const FillTask task) {
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < task.count; i += step) {
        task.words[i] = scrambled(static_cast<uint32_t>(i));
    }
}

struct SumTask {
    const uint32_t* words;
    uint64_t count;
    uint64_t stride;  // 1: every word; words of a page: the first of each page
    uint32_t* sum;
};

static __global__ void sum_words(const SumTask task) {
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    uint32_t sum = 0;
    for (uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < task.count; i += step) {
        sum += task.words[i * task.stride];
    }
    atomicAdd(task.sum, sum);
}

class Weights {
  public:
    static constexpr size_t kBytes = size_t{8} << 30;

    explicit Weights(const Card& card) : card_(card), words_(kBytes / 4), sum_(1) {
        card_.launch(fill, {card_.sms() * 2, 512, 0}, FillTask{words_.data(), kBytes / 4});
        card_.finish();
        prove();
    }

    const std::byte* data() const { return reinterpret_cast<const std::byte*>(words_.data()); }

    // Of the first `count` words that lie `stride` apart, modulo 2^32.
    uint32_t sum(uint64_t count, uint64_t stride = 1) const {
        sum_.clear(card_.stream());
        card_.launch(sum_words, {card_.sms() * 2, 512, 0},
                     SumTask{words_.data(), count, stride, sum_.data()});
        card_.finish();
        return sum_.host()[0];
    }

  private:
    // The formula and the sum, against the host over the first 4 MiB and at the very end.
    void prove() const {
        constexpr uint32_t kWords = 1 << 20;
        uint32_t expected = 0;
        for (uint32_t i = 0; i < kWords; ++i) expected += scrambled(i);
        must_hold(sum(kWords) == expected, "the sum of the first weights is not the host's");
        uint32_t last = 0;
        MUST(cudaMemcpy(&last, words_.data() + kBytes / 4 - 1, 4, cudaMemcpyDeviceToHost));
        must_hold(last == scrambled(static_cast<uint32_t>(kBytes / 4 - 1)),
                  "the last weight is not the formula's");
    }

    const Card& card_;
    Array<uint32_t> words_;
    Array<uint32_t> sum_;
};

}  // namespace tessera::ground
