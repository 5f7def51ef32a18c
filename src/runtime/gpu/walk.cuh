// The kernel, for any machine: its own (walk.cu), and the one that goes wrong (faulty.cu). Phases
// [begin, end) of a step, by one block an SM. All phases in one cooperative launch are the
// persistent path; a launch for each is the other one, its oracle: the same code, with launches in
// the place of barriers.
#pragma once

#include "runtime/gpu/consumers.cuh"
#include "runtime/gpu/loader.cuh"
#include "runtime/gpu/walk.h"

namespace tessera::gpu {

// `Faults`: says at every place that can go wrong whether it does (NoFaults).
template <typename Faults>
__global__ __launch_bounds__(kBlockThreads, 1) void walk(const __grid_constant__ Network net,
                                                         const Phase* phases, uint32_t begin,
                                                         uint32_t end, const Step* step,
                                                         uint64_t passed) {
    std::byte* const memory = dynamic_shared();
    Block block{{net, memory},
                phases,
                begin,
                Ring::at(memory + net.shared.ring, net.shared.pages, kPageBytes)};
    block.every_lane = Faults::kEveryLane;
    if (threadIdx.x == 0) {
        block.counts() = {};
        block.counts().passed = passed;
        block.init_barriers();
    }
    __syncthreads();
    if (threadIdx.x >= kConsumerThreads) {
        if (threadIdx.x == kConsumerThreads) Loader<Faults>(block).run(begin, end);
        return;
    }
    // Weights are on their way; what an earlier launch writes may be read from here on.
    cudaGridDependencySynchronize();
    for (uint32_t i = threadIdx.x; i < sizeof(Step) / 4; i += kConsumerThreads)
        reinterpret_cast<uint32_t*>(&block.step())[i] = reinterpret_cast<const uint32_t*>(step)[i];
    sync_consumers();
    Consumers<Faults>(block).run(begin, end);
}

template <typename Faults>
cudaError_t prepare_walk_with(uint32_t shared_bytes) {
    return cudaFuncSetAttribute(walk<Faults>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(shared_bytes));
}

template <typename Faults>
cudaError_t launch_walk_with(const Launch& launch, cudaStream_t stream) {
    cudaLaunchConfig_t config{};
    config.gridDim = launch.blocks;
    config.blockDim = kBlockThreads;
    config.dynamicSmemBytes = launch.network->shared.bytes;
    config.stream = stream;
    cudaLaunchAttribute attribute{};
    if (launch.alone) {
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
    } else {
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, walk<Faults>, *launch.network, launch.phases, launch.begin,
                              launch.end, launch.step, launch.passed);
}

}  // namespace tessera::gpu
