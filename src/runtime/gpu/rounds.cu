// The rounds of the machine itself.
#include "runtime/gpu/rounds.cuh"

namespace tessera::gpu {

cudaError_t prepare_rounds(uint32_t shared_bytes) {
    return cudaFuncSetAttribute(rounds<NoFaults>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(shared_bytes));
}

uint32_t rounds_static_bytes() {
    return (sizeof(Told) + 127) / 128 * 128;
}

cudaError_t launch_rounds(const RoundsLaunch& launch, cudaStream_t stream) {
    cudaLaunchConfig_t config{};
    config.gridDim = launch.blocks;
    config.blockDim = kBlockThreads;
    config.dynamicSmemBytes = launch.turns[kTarget].network.shared.bytes;
    config.stream = stream;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, rounds<NoFaults>, launch);
}

}  // namespace tessera::gpu
