// Rounds on the card: launches of the kernel that writes by itself, and what comes back of them.
#pragma once

#include <optional>

#include "runtime/gpu/machine.h"
#include "runtime/gpu/rounds.h"

namespace tessera::gpu {

class RoundsMachine {
  public:
    // Of walkers of one stream, which outlive it; the drafter's block may be null. Throws Error if
    // there is no memory.
    RoundsMachine(const Walker& target, const Walker* drafter, cudaStream_t stream);

    // As Runner has them.
    void start(const RoundsInput& input);
    std::optional<Round> next();
    void stop();

  private:
    const Walker& target_;
    cudaStream_t stream_;
    Stream beside_{cudaStreamNonBlocking};  // asks for an end while the kernel runs
    RoundsLaunch launch_{};
    DeviceMemory memory_;
    PinnedMemory<Round> rounds_;
    PinnedMemory<uint64_t> made_;
    PinnedMemory<uint32_t> one_;
    bool running_ = false, last_ = false;
    uint64_t taken_ = 0;
};

}  // namespace tessera::gpu
