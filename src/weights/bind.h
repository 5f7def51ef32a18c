// Names become fields, once: every tensor of a checkpoint bound by name, dtype and shape, or one
// error that says which is wrong. Behind this door a matrix is a view of the mapped file in the
// checkpoint's own format; nothing is copied but the small vectors.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/numbers.h"
#include "checkpoint/checkpoint.h"
#include "model/shape.h"
#include "weights/inventory.h"

namespace tessera {

// [rows, columns] in the mapping. A matrix may be a part of a fused projection: its rows then come
// in runs of `part_rows`, one in every chunk of `chunk_rows` stored rows, `chunk_offset` rows into
// it.
struct Matrix {
    Format format;
    uint32_t rows;
    uint32_t columns;
    const std::byte* data;    // stored rows of row_bytes()
    const std::byte* scales;  // fp8: f32 [chunks * scale_rows(), blocks]; mxfp4: e8m0 [stored rows,
                              // columns / 32]
    uint32_t part_rows;
    uint32_t chunk_rows;
    uint32_t chunk_offset;

    uint64_t row_bytes() const;
    uint64_t stored_row(uint32_t row) const {
        return uint64_t{row / part_rows} * chunk_rows + chunk_offset + row % part_rows;
    }
    // From its first stored row to its last, whatever lies between.
    std::span<const std::byte> stored_bytes() const {
        const uint64_t begin = stored_row(0), end = stored_row(rows - 1) + 1;
        return {data + begin * row_bytes(), (end - begin) * row_bytes()};
    }
    // Its scales, of all parts if it is one of a fused projection; none if it has none.
    std::span<const std::byte> stored_scales() const;
    // The scales of an fp8 matrix restart in every chunk.
    uint64_t scale_row(uint32_t row) const;
};

// Writes `row` as floats, out.size() == matrix.columns. fp8 and mxfp4 values are rounded to bf16,
// as the published model has them; for mxfp4 that rounding changes nothing.
void dequantize_row(const Matrix& matrix, uint32_t row, std::span<float> out);

struct FeedForward {
    Matrix gate, up;  // width, hidden
    Matrix down;      // hidden, width
};

struct LayerWeights {
    std::vector<float> input_norm, post_norm;  // hidden
    Matrix q;                                  // heads * head_dim, hidden
    Matrix k;                                  // kv_heads * head_dim, hidden
    Matrix v;                                  // kv_heads * v_head_dim, hidden
    Matrix o;                                  // hidden, heads * v_head_dim
    std::vector<float> sink;                   // heads; empty without sinks

    FeedForward dense;                   // of a dense layer
    Matrix router;                       // experts, hidden
    std::vector<float> correction_bias;  // experts
    std::vector<FeedForward> experts;    // experts; empty in a dense layer
};

struct Weights {
    Shape shape;
    Matrix embedding;  // vocab, hidden
    std::vector<LayerWeights> layers;
    std::vector<float> norm;  // hidden
    Matrix head;              // vocab, hidden
    uint64_t bytes;           // of every bound tensor, as stored
};

// What the binder demands, from headers alone: every tensor of `inventory` is in the checkpoint,
// with its dtype and shape, and nothing else but skipped kinds (MTP, vision, audio; logged in one
// line). Throws Error naming the first tensor that is wrong, with expected and found. Returns their
// bytes.
uint64_t check_tensors(const Checkpoint& checkpoint, const std::vector<RequiredTensor>& inventory);

// Binds all tensors that target_inventory(shape) lists, after check_tensors. Reads no data but the
// small vectors. The checkpoint must outlive the weights.
Weights bind(const Checkpoint& checkpoint, const Shape& shape);

// Refuses scales that are NaN, infinite or negative, naming the tensor and row. Throws Error.
void check_scales(const Checkpoint& checkpoint, const Shape& shape, uint32_t threads);

// Reads every bound byte once in parallel, so that a step of the reference meets no page fault,
// after check_scales. `progress(done, total)` in bytes is called by one thread at a time.
void read_through(const Checkpoint& checkpoint, const Shape& shape, uint32_t threads,
                  const std::function<void(uint64_t, uint64_t)>& progress = {});

}  // namespace tessera
