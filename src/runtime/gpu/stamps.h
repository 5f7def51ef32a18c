// What the stamps of a step say: as a trace, a track for each block. Not CUDA: who has stamps has
// phases, and needs no card to look at them.
#pragma once

#include <filesystem>
#include <span>
#include <string>

#include "runtime/gpu/model.h"

namespace tessera::gpu {

// "down", "down of experts".
std::string phase_name(const Phase& phase);

// `stamps`: [phases][blocks], of one launch for all phases. Of every phase a block has a slice from
// its beginning to its end (op, layer; within it what it prepares, streams and finishes, where
// there is a matrix), and before it what it waited for the others. Time 0 is the first stamp.
// Throws Error if the file cannot be written.
void write_trace(const std::filesystem::path& path, std::span<const Phase> phases,
                 std::span<const Stamp> stamps);

}  // namespace tessera::gpu
