// How attention on the GPU lays out what a block has of it in shared memory: for the kernel, and
// for the host, which finds the place.
#pragma once

#include <cstdint>

namespace tessera::gpu {

inline constexpr uint32_t kQueries = 16;    // of a task: the M of an mma
inline constexpr uint32_t kValueDims = 32;  // of values, that one warp has sums for

// Warps that share a tile of keys.
constexpr uint32_t tile_sharers(uint32_t v_head_dim) {
    return (v_head_dim + kValueDims - 1) / kValueDims;
}

// A part is what several tiles or chunks made of 16 queries: highest [16], total [16], then values
// [16][v_head_dim].
constexpr uint32_t part_floats(uint32_t v_head_dim) {
    return kQueries * (v_head_dim + 2);
}

// A tile is 16 keys and values, in rows of pairs of dims [head_dim / 2] and of pairs of positions
// [8], so far apart that the lanes of an mma's operand read from 32 banks.
inline constexpr uint32_t kKeyStride = 24;  // words, of which 16 are used
constexpr uint32_t value_stride(uint32_t v_head_dim) {
    return tile_sharers(v_head_dim) * kValueDims + 8;
}
constexpr uint32_t key_words(uint32_t head_dim) {
    return head_dim / 2 * kKeyStride;
}
constexpr uint32_t tile_words(uint32_t head_dim, uint32_t v_head_dim) {
    return key_words(head_dim) + 8 * value_stride(v_head_dim);
}

}  // namespace tessera::gpu
