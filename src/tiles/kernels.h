// What one tile does, as functions over plain pointers: the contracts, once, and a table of them
// for each instruction set. A kernel knows no plan, no buffer and no thread. None allocates, throws
// or keeps anything between calls, and none lets a row's numbers depend on the rows beside it:
// every sum runs in an order that the row alone fixes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/numbers.h"
#include "tiles/packed.h"

namespace tessera {

enum class Isa : uint8_t { portable, avx2, avx512, avx512_vnni };
inline constexpr Isa kIsas[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_vnni};

// Rows of activations by address: gathered rows need not be neighbours. Each is padded with zeros
// to whole panels: floats for plain weights, blocks of 32 for mxfp4.
template <typename T>
struct Rows {
    const T* const* at;
    uint32_t count;
};

// Keys of one kv head in tiles of 16 positions: [dim / 2][16 positions][2], so that a score is a
// lane. Values: [position][dim], padded to 16.
constexpr uint64_t key_tile_elements(uint32_t head_dim) {
    return uint64_t{head_dim} * kUnitRows;
}
constexpr uint64_t value_row_elements(uint32_t v_head_dim) {
    return padded(v_head_dim, kUnitRows);
}

// The unit of work of attention and of its memory: a row's softmax over keys
// [c * kChunkKeys, (c + 1) * kChunkKeys) is one partial result, whoever computes it.
inline constexpr uint32_t kChunkKeys = 512;

// Attention of `heads` query heads that share a kv head, for one row, over one chunk of its keys.
struct AttendTask {
    const float* query;  // heads, head_dim (even)
    uint32_t heads;
    uint32_t head_dim;
    uint32_t v_head_dim;
    float scale;  // of a score
    // Memory of `ring` positions, a multiple of 16: position p lies at p % ring.
    const bf16* keys;
    const bf16* values;
    uint32_t ring;
    uint32_t first, last;  // positions, both seen; last - first < kChunkKeys
    // Per head, with these strides: the sum of e^(score - highest) * value, v_head_dim padded to
    // 16; the highest score; the sum of e^(score - highest).
    float* out;
    size_t out_stride;
    float* highest;
    float* total;
    size_t number_stride;
    float* scratch;  // heads * kScoreStride
};
inline constexpr size_t kScoreStride = kChunkKeys + 2 * kUnitRows;

// From this exponent field on, what divides two codes is a normal bf16 at every block's scale.
inline constexpr uint32_t kToMxfp4FieldMin = 5;

struct Kernels {
    Isa isa;

    // Reads all of [from, from + bytes) and adds up its 32-bit words, the last filled up with
    // zeros: what memory gives to a core that does nothing else.
    uint32_t (*read)(const std::byte* from, size_t bytes);

    // out[row * stride + r] = the dot product of packed output row r with activations `row`:
    // `units` units from `weights`, each of `panels` panels; 32 columns at a time in ascending
    // order, each block's sum times its scale added to the row's. Not for mxfp4.
    void (*multiply)(Format format, const std::byte* weights, uint32_t units, uint32_t panels,
                     const Rows<float>& rows, float* out, size_t stride);

    // The same for mxfp4 weights and blocks of integers: a block's sum is exact.
    void (*multiply_int16)(const std::byte* weights, uint32_t units, uint32_t panels,
                           const Rows<Int16Block>& rows, float* out, size_t stride);
    void (*multiply_int8)(const std::byte* weights, uint32_t units, uint32_t panels,
                          const Rows<Int8Block>& rows, float* out, size_t stride);

    // One row: out[width] = bf16(bf16(x / rms(x)) * gain), as floats.
    void (*norm)(const float* x, const float* gain, uint32_t width, float epsilon, float* out);

    // One row of `blocks` blocks of 32: codes = round(x / scale), the largest being 32767 or 127.
    void (*quantize_int16)(const float* x, uint32_t blocks, Int16Block* out);
    void (*quantize_int8)(const float* x, uint32_t blocks, Int8Block* out);

    // `blocks` blocks of 32 bf16, wherever they lie, become mxfp4 by the nearest rule of
    // weights/quantize.h: 16 bytes of codes and one of scale each. Ends before the first block
    // whose largest magnitude has an exponent field below kToMxfp4FieldMin, or that holds NaN or
    // infinity; returns how many it did.
    uint32_t (*to_mxfp4)(const std::byte* row, uint32_t blocks, std::byte* codes,
                         std::byte* scales);

    // out[count] = bf16(silu(bf16(gate)) * bf16(up)), as floats.
    void (*gate)(const float* gate, const float* up, uint32_t count, float* out);

    // sum[count] += weight * x.
    void (*add_weighted)(const float* x, float weight, uint32_t count, float* sum);

    // x[count] = bf16(x + bf16(update)): the residual stream, rounded where the model rounds it.
    void (*add_residual)(const float* update, uint32_t count, float* x);

    // The sum of e^min(0, scale * (x - top)): of logits, what their probabilities are shares of.
    float (*exp_sum)(const float* x, uint32_t count, float scale, float top);

    void (*attend)(const AttendTask& task);

    // One head's parts, in order, become its output: out[v_head_dim] = bf16(sum / total), as
    // floats. `sink` is one more logit without a value, or null. part `i` is at values + i *
    // stride.
    void (*merge)(const float* values, const float* highest, const float* total, uint32_t parts,
                  size_t value_stride, size_t number_stride, const float* sink, uint32_t v_head_dim,
                  float* out);
};

// The kernels of an instruction set; null if this processor or this build lacks it.
const Kernels* find_kernels(Isa isa);

// The fastest that this processor has.
const Kernels& best_kernels();

std::string_view isa_name(Isa isa);
std::optional<Isa> isa_of(std::string_view name);

}  // namespace tessera
