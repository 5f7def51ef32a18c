// The GPU machine: the phases of a step on one card, by one launch (persistent) or one a phase
// (graph). Numbers are the same either way, bit for bit, and do not depend on how many rows share a
// step.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "runtime/gpu/phases.h"
#include "runtime/gpu/walk.h"
#include "runtime/gpu/weights.h"
#include "runtime/trace.h"

namespace tessera::gpu {

enum class Path : uint8_t { graph, persistent };

struct Options {
    Path path = Path::persistent;
    uint32_t context = 0;           // positions of a sequence at most
    bool loop_back = false;         // of one rank of several: exchanges go to its own memory
    bool stamps = false;            // keep the times of every phase and block of the last step
    const Kernel* kernel = &kWalk;  // another: for tests, or to watch
};

// One model's phases, with their buffers: the target's, or the drafter's block or context.
class Walker {
  public:
    // All outlive the walker. Throws Error if memory is not to be had or the model does not fit.
    Walker(const Program& program, const DeviceWeights& weights, const Options& options,
           cudaStream_t stream);
    Walker(const Walker&) = delete;
    Walker& operator=(const Walker&) = delete;
    ~Walker();

    // Asks for a step; it is done when the stream is. Aborts if the device failed.
    void launch(const Step& step);

    // One phase alone: for those who compare.
    void launch_phase(const Step& step, uint32_t index);

    // f32 [rows, the rank's vocabulary], the device's.
    const float* logits() const { return network_.logits; }
    uint32_t vocab() const { return network_.vocab; }

    // Distinct experts of the last step, summed over layers; reads the device.
    uint32_t live_experts() const;

    const std::vector<Phase>& phases() const { return list_.phases; }
    const SharedNeeds& needs() const { return list_.needs; }
    const Phase* device_phases() const { return reinterpret_cast<const Phase*>(phases_.data()); }
    const CacheLayout& cache() const { return cache_; }
    uint32_t blocks() const { return blocks_; }
    uint32_t ring_pages() const { return network_.shared.pages; }
    const Network& network() const { return network_; }

    // Of the last step: [phases][blocks]; empty without Options::stamps.
    std::vector<Stamp> stamps() const;

    // Waits for the stream; aborts with what the blocks waited for if the device failed.
    void finish() const;

  private:
    void take_buffers(const Shape& shape, const PlanRequest& request);
    void capture();
    void check(cudaError_t result, const char* what) const;

    Options options_;
    cudaStream_t stream_;
    CacheLayout cache_;
    uint32_t blocks_;
    PhaseList list_;
    Network network_{};
    DeviceMemory buffers_, phases_, angles_, stamps_;
    PinnedMemory<std::array<std::byte, 32>> distress_;  // a Distress a block
    PinnedMemory<Step> input_;
    DeviceMemory step_;
    cudaGraphExec_t graph_ = nullptr;
    uint32_t barriers_ = 0;  // of a step
    uint64_t launches_ = 0;
};

// A sequence's keys and values on the card.
class GpuCache {
  public:
    explicit GpuCache(const CacheLayout& layout) : memory_(layout.bytes) { memory_.clear(); }
    std::byte* data() const { return memory_.data(); }
    uint64_t bytes() const { return memory_.bytes(); }

  private:
    DeviceMemory memory_;
};

}  // namespace tessera::gpu
