// For context: what the card's own copy moves, and what a kernel costs in a chain of a CUDA graph,
// with and without programmatic dependent launch.
#pragma once

#include "weights.cuh"

namespace tessera::ground {

// A chain is timed empty. The same chain is run once more with kernels of which one thread counts:
// one that does not run, or runs before the one it depends on, spoils the count.
struct ChainTask {
    uint32_t* count;
    uint32_t* faults;
    uint32_t position;  // in the chain
    uint32_t length;
};

template <bool kProgrammatic, bool kCounts>
__global__ void link_of_chain(const ChainTask task) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (kProgrammatic) {
        cudaTriggerProgrammaticLaunchCompletion();
        cudaGridDependencySynchronize();
    }
#endif
    if constexpr (kCounts) {
        if (blockIdx.x != 0 || threadIdx.x != 0) return;
        const uint32_t before = atomicAdd(task.count, 1);
        if (before % task.length != task.position) atomicAdd(task.faults, 1);
    }
}

struct ChainShape {
    bool programmatic;
    bool counts;
    uint32_t blocks;
    uint32_t threads;
};

class Chain {
  public:
    static constexpr uint32_t kLength = 100;
    static constexpr uint32_t kReplays = 20;

    Chain(const Card& card, const ChainShape& shape)
        : card_(card), shape_(shape), count_(1), faults_(1) {
        MUST(cudaStreamBeginCapture(card.stream(), cudaStreamCaptureModeThreadLocal));
        for (uint32_t position = 0; position < kLength; ++position) add(position);
        MUST(cudaStreamEndCapture(card.stream(), &graph_));
        MUST(cudaGraphInstantiate(&runnable_, graph_, 0));
    }
    ~Chain() {
        if (runnable_ != nullptr) cudaGraphExecDestroy(runnable_);
        if (graph_ != nullptr) cudaGraphDestroy(graph_);
    }
    Chain(const Chain&) = delete;
    Chain& operator=(const Chain&) = delete;

    Spread us_per_kernel() const {
        std::vector<double> times;
        for (uint32_t repetition = 0; repetition < kWarmUps + kRepetitions; ++repetition) {
            const double time = card_.milliseconds([&] { replay(); });
            if (repetition >= kWarmUps) times.push_back(time * 1e3 / kReplays / kLength);
        }
        return spread(times);
    }

    void check_count() const {
        count_.clear(card_.stream());
        faults_.clear(card_.stream());
        replay();
        card_.finish();
        const uint32_t count = count_.host()[0];
        must_hold(count == kReplays * kLength, "the chain counted " + std::to_string(count));
        must_hold(faults_.host()[0] == 0, "a kernel ran before the one it depends on");
    }

  private:
    void replay() const {
        for (uint32_t i = 0; i < kReplays; ++i) MUST(cudaGraphLaunch(runnable_, card_.stream()));
    }

    void add(uint32_t position) const {
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = shape_.blocks;
        config.blockDim = shape_.threads;
        config.stream = card_.stream();
        config.attrs = &attribute;
        config.numAttrs = shape_.programmatic && position > 0 ? 1 : 0;
        const auto kernel =
            shape_.programmatic
                ? (shape_.counts ? link_of_chain<true, true> : link_of_chain<true, false>)
                : (shape_.counts ? link_of_chain<false, true> : link_of_chain<false, false>);
        const ChainTask task = {count_.data(), faults_.data(), position, kLength};
        MUST(cudaLaunchKernelEx(&config, kernel, task));
    }

    const Card& card_;
    ChainShape shape_;
    Array<uint32_t> count_;
    Array<uint32_t> faults_;
    cudaGraph_t graph_ = nullptr;
    cudaGraphExec_t runnable_ = nullptr;
};

inline Spread copy_gb_per_s(const Card& card) {
    const Weights weights(card);
    constexpr size_t kBytes = size_t{4} << 30;
    const Array<uint32_t> copy(kBytes / 4);
    const Array<uint32_t> sum(1);
    copy.clear(card.stream());
    std::vector<double> rates;
    for (uint32_t repetition = 0; repetition < kWarmUps + kRepetitions; ++repetition) {
        const double time = card.milliseconds([&] {
            MUST(cudaMemcpyAsync(copy.data(), weights.data(), kBytes, cudaMemcpyDeviceToDevice,
                                 card.stream()));
        });
        if (repetition >= kWarmUps) rates.push_back(2 * static_cast<double>(kBytes) / 1e6 / time);
    }
    sum.clear(card.stream());
    card.launch(sum_words, {card.sms() * 2, 512, 0},
                SumTask{copy.data(), kBytes / 4, 1, sum.data()});
    card.finish();
    must_hold(sum.host()[0] == weights.sum(kBytes / 4), "the copy is not what was copied");
    return spread(rates);
}

inline void measure_launches(const Card& card, const Reporter& reporter) {
    const std::string copy = "cudaMemcpy from device to device, read and written";
    reporter.attempt(copy, [&] { reporter.say(Figure{copy, "GB/s", copy_gb_per_s(card), {}}); });
    for (const bool programmatic : {false, true}) {
        for (const bool small : {true, false}) {
            const std::string name = std::string("a kernel of ") +
                                     (small ? "1 block of 32" : "1 block of 288 a SM") +
                                     (programmatic ? ", programmatic launch" : ", in stream order");
            reporter.attempt(name, [&] {
                ChainShape shape = {programmatic, true, small ? 1 : card.sms(), small ? 32u : 288u};
                Chain(card, shape).check_count();
                shape.counts = false;
                const Chain chain(card, shape);
                reporter.say(Figure{name, "us", chain.us_per_kernel(), {}});
            });
        }
    }
}

}  // namespace tessera::ground
