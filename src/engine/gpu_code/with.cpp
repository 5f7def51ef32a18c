// For a build with nvcc.
#include "engine/gpu.h"

namespace tessera {
namespace {

constexpr GpuCode kCode = {&gpu::no_card, &gpu::find_card, &gpu::make_runner};

}  // namespace

const GpuCode* const kGpuCode = &kCode;

}  // namespace tessera
