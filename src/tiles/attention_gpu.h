// How attention on the GPU lays out what a block has of it in shared memory: for the kernel, and
// for the host, which finds the place.
#pragma once

#include <cstdint>

namespace tessera::gpu {

inline constexpr uint32_t kQueries = 16;      // of a task: the M of an mma
inline constexpr uint32_t kValueDims = 32;    // of values, that a lane's loads and stores reach
inline constexpr uint32_t kHeadDimMax = 192;  // of queries and keys
inline constexpr uint32_t kValueDimMax = 128;

// Warps of a block that attend, each with tiles of keys and a part of its own.
inline constexpr uint32_t kAttendWarps = 10;

// A part is what one warp, or a chunk, made of 16 queries, for `dims` of the values: highest [16],
// total [16], then values [16][part_stride]. Rows lie so far apart that a warp's stores of 16 bytes
// meet no bank twice.
constexpr uint32_t part_stride(uint32_t dims) {
    return (dims + kValueDims - 1) / kValueDims * kValueDims + 4;
}
constexpr uint32_t part_floats(uint32_t dims) {
    return kQueries * (part_stride(dims) + 2);
}

// Of a block: its warps' parts, then the queries as operands.
constexpr uint32_t attention_bytes(uint32_t head_dim, uint32_t dims) {
    return kAttendWarps * part_floats(dims) * 4 + head_dim / 16 * 512;
}

}  // namespace tessera::gpu
