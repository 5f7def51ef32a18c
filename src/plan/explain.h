// A program for people: what its phases do and read, or every tile.
#pragma once

#include <string>

#include "plan/program.h"

namespace tessera {

// A line a phase: op, layers that look alike, tiles, weight bytes of a rank; then totals and
// buffers. Bytes of experts count every slot as live.
std::string explain(const Program& program);

// A line a tile, in the defining order: what it is, whose, what it waits for and signals.
std::string explain_tiles(const Program& program);

}  // namespace tessera
