// Gives the buffers of a program their places in a rank's arena: those that never hold something at
// the same time may share bytes.
#pragma once

#include "plan/program.h"

namespace tessera {

void lay_out_buffers(Program& program);

}  // namespace tessera
