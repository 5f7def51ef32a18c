#include "runtime/gpu/faults.h"
#include "runtime/gpu/walk.cuh"

namespace tessera::gpu {
namespace {

__constant__ Fault injected;

struct InjectedFaults {
    static constexpr bool kWatches = false;
    static constexpr bool kEveryLane = true;  // the kernel that racecheck looks at
    __device__ static bool signals(uint32_t phase) { return !is(FaultKind::silent, phase); }
    __device__ static bool comes(uint32_t phase, bool last) {
        return !(last && is(FaultKind::lost_page, phase));
    }
    __device__ static bool is_right(uint32_t phase, bool last) {
        return !(last && is(FaultKind::wrong_page, phase));
    }

  private:
    __device__ static bool is(FaultKind kind, uint32_t phase) {
        return injected.kind == kind && injected.phase == phase && injected.block == blockIdx.x;
    }
};

}  // namespace

cudaError_t inject(const Fault& fault) {
    return cudaMemcpyToSymbol(injected, &fault, sizeof(fault));
}

const Kernel kFaultyWalk = {&prepare_walk_with<InjectedFaults>, &launch_walk_with<InjectedFaults>};

}  // namespace tessera::gpu
