// The machine's kernel.
#include "runtime/gpu/walk.cuh"

namespace tessera::gpu {

const Kernel kWalk = {&prepare_walk_with<NoFaults>, &launch_walk_with<NoFaults>};

}  // namespace tessera::gpu
