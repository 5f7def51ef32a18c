// What the faulty machine does wrong: proof that the tests' gates can fail. It is another kernel
// (faulty.cu) that only tests link; the machine's own has none of this.
#pragma once

#include <cstdint>

#include "runtime/gpu/walk.h"

namespace tessera::gpu {

enum class FaultKind : uint8_t {
    none,
    silent,     // the block does not signal that it has come to the barrier before the phase
    lost_page,  // the block's last page of the phase never comes
    wrong_page  // in the place of the block's last page of the phase comes the matrix's first
};

struct Fault {
    FaultKind kind = FaultKind::none;
    uint32_t phase = 0, block = 0;
};

// Of every launch of kFaultyWalk from here on.
cudaError_t inject(const Fault& fault);

extern const Kernel kFaultyWalk;

}  // namespace tessera::gpu
