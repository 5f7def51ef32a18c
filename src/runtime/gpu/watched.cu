// The machine's kernel, which looks at the clock within its loops: for stamps alone.
#include "runtime/gpu/walk.cuh"

namespace tessera::gpu {
namespace {

struct Watch : NoFaults {
    static constexpr bool kWatches = true;
};

}  // namespace

const Kernel kWatchedWalk = {&prepare_walk_with<Watch>, &launch_walk_with<Watch>};

}  // namespace tessera::gpu
