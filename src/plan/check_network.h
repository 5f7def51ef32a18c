// The part of check() that asks whether what the tiles define is the network: its phases in their
// order, each whole. Events, memory and balance are check.cpp's.
#pragma once

#include <optional>
#include <string>

#include "plan/program.h"

namespace tessera {

// The first fault. That accesses stay in their buffers was checked before.
std::optional<std::string> check_network(const Program& program);

// "tile 7 (norm, layer 0, rank 1, slot 1, 0 to 2)"
std::string tile_text(const Program& program, uint32_t index);

}  // namespace tessera
