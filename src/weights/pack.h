// Moves weight bytes from the checkpoint's order into tile order (tiles/packed.h): the only code
// that does. Codes and scales move as they are; what a matrix multiplies with does not change.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/arena.h"
#include "model/ranks.h"
#include "tiles/packed.h"
#include "weights/bind.h"
#include "weights/bind_drafter.h"

namespace tessera {

struct PackedFeedForward {
    PackedMatrix gate_up;  // units of gate and up in turn: 2 * width, hidden
    PackedMatrix down;     // hidden, width
};

// One layer's share of one rank.
struct PackedLayer {
    std::span<const float> input_norm, post_norm;  // hidden
    PackedMatrix qkv;  // its q heads, then its k heads, then its v heads; the rotary dims
                       // of q and k in the order of rotary_source_dim
    PackedMatrix o;    // hidden, its heads * v_head_dim
    std::span<const float> sink;  // its heads; empty without sinks

    // Of a drafter, in the place of qkv. The gains are in the order of rotary_source_dim too.
    PackedMatrix query, keys;
    std::span<const float> query_norm, key_norm;  // head_dim

    PackedFeedForward dense;                 // of a dense layer
    PackedMatrix router;                     // experts, hidden; the same on every rank
    std::span<const float> correction_bias;  // experts
    std::vector<PackedFeedForward> experts;
};

struct PackedRank {
    Arena arena;  // holds all that the views below point at
    std::vector<PackedLayer> layers;
    std::span<const float> norm;  // hidden
    PackedMatrix head;            // its share of the vocabulary, hidden
    Span vocab;

    // Of a drafter.
    PackedMatrix fuse;                    // hidden, its share of the tapped columns
    std::span<const float> context_norm;  // hidden
};

struct PackedWeights {
    Shape shape;
    Arena embedding_arena;
    std::span<const bf16> embedding;  // vocab, hidden: rows are looked up, not multiplied
    std::vector<PackedRank> ranks;

    // Of a drafter, whose embedding and head are the target's own memory.
    std::optional<DrafterShape> drafter;
    std::vector<float> mask;  // hidden: the embedding of a masked position

    uint64_t bytes() const;  // its own
};

// fp8 weights as they are, or turned into the bf16 values that the published model rounds them to.
// Twice the bytes, but a third of an fp8 kernel's time is unpacking: that pays where arithmetic and
// not memory is the limit, in a model that stays in the last cache.
enum class Fp8 : uint8_t { keep, unpack, unpack_in_cache };

// Bytes that pack_weights will take.
uint64_t packed_bytes(const Weights& weights, uint32_t ranks, Fp8 fp8 = Fp8::keep);

struct PackOptions {
    uint32_t ranks = 1;
    uint32_t threads = 1;
    std::function<void(uint64_t done, uint64_t total)> progress;  // packed bytes; one thread a time
    std::function<void(std::span<const std::byte>)> drop;         // read, and not needed again
    Fp8 fp8 = Fp8::keep;
};

// `weights` has no ranks_problem. Its scales were checked. Throws Error if memory is not to be had.
PackedWeights pack_weights(const Weights& weights, const PackOptions& options);

// The same for a drafter of that target, over as many ranks. `target` outlives what is returned.
uint64_t packed_bytes(const DrafterWeights& weights, const PackedWeights& target);
PackedWeights pack_drafter(const DrafterWeights& weights, const PackedWeights& target,
                           const PackOptions& options);

// A row of a source matrix, or none (zeros).
struct SourceRow {
    const Matrix* matrix = nullptr;
    uint32_t row = 0;
};

// Packs one unit: 16 rows (fewer at the end of a matrix), columns [column_begin, column_begin +
// columns) of each, in `format`. All rows have that format, or it is bf16 and they are rounded to
// it as dequantize_row does.
void pack_unit(std::span<const SourceRow> rows, Format format, uint32_t column_begin,
               uint32_t columns, std::byte* out);

}  // namespace tessera
