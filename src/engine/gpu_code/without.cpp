// For a build without nvcc.
#include "engine/gpu.h"

namespace tessera {

const GpuCode* const kGpuCode = nullptr;

}  // namespace tessera
