// Runs tiles: the bridge from a program's numbers to the kernels' pointers. What a tile reads and
// writes here is what plan's accesses() says of it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/arena.h"
#include "plan/program.h"
#include "runtime/kv_cache.h"
#include "tiles/routes.h"
#include "weights/pack.h"

namespace tessera {

// What a drafter reads of the target: for each of some consecutive positions of one sequence, its
// tapped residuals, [taps, hidden].
struct DraftContext {
    const KvCache* cache = nullptr;  // the drafter's
    uint32_t position = 0;           // of the first
    std::span<const bf16* const> taps;
    uint32_t seen_from = 0;  // the first position whose keys and values the cache has

    uint32_t rows() const { return static_cast<uint32_t>(taps.size()); }
};

// One step: `rows` tokens, each of some sequence. A drafter's is a block: the anchor and as many
// masked positions, whose tokens are not looked at; or no rows at all, to take in context.
struct StepInput {
    std::span<const uint32_t> tokens;        // rows
    std::span<const uint32_t> positions;     // rows: of each token in its sequence
    std::span<const KvCache* const> caches;  // rows
    uint32_t logits_from = 0;                // rows before this one need no logits
    std::span<bf16* const> taps = {};        // rows: where to keep its tapped residuals [taps,
                                             // hidden]; null, or all empty: nowhere
    DraftContext context = {};               // of a drafter's step

    uint32_t rows() const { return static_cast<uint32_t>(tokens.size()); }
};

// By which each rotary pair of the first dims turns from one position to the next.
std::vector<float> rotary_frequencies(const AttentionShape& a);

// What one worker needs beside its tile.
struct Scratch {
    explicit Scratch(const PlanRequest& request);

    std::vector<float> out, sum;     // rows * experts a token, kSpanUnits * 16 or a head
    std::vector<const float*> rows;  // rows * experts a token
    std::vector<const std::byte*> blocks;
    std::vector<float> scores;                 // heads, kScoreStride
    std::vector<float> mixed, highest, total;  // heads: of attention in one chunk
    std::vector<float> head, normed_head;      // head_dim
};

class Executor {
  public:
    // All outlive the executor. `program` was checked and made for these weights.
    Executor(const Program& program, const PackedWeights& weights, const Kernels& kernels);

    // The step that the following tiles belong to; outlives them.
    void begin(const StepInput& step) { step_ = step; }

    void run(const Tile& tile, Scratch& scratch);

    std::span<const float> logits(uint32_t rank, uint32_t row) const;

    // Distinct experts in the layer in the last step; 0 in a dense one.
    uint32_t live_experts(uint32_t layer) const { return live_[layer]; }

    // A buffer's memory, for those who compare and poison.
    std::span<std::byte> memory(uint32_t rank) {
        return {arenas_[rank].data(), program_.arena_bytes};
    }
    std::span<const std::byte> bytes(const Buffer& buffer) const {
        return {arenas_[buffer.rank].data() + buffer.offset, buffer.bytes()};
    }

    const Program& program() const { return program_; }

  private:
    template <typename T>
    struct View {
        std::byte* data;
        size_t row_bytes;
        T* row(size_t index) const { return reinterpret_cast<T*>(data + index * row_bytes); }
    };
    struct Buffers {
        View<float> residual, angles, partial[3], scores, parts, logits;
        View<float> normed, query, mixed, gated;
        View<float> tapped, fused, context, context_angles;
        View<std::byte> normed_blocks, gated_blocks;
        Routes routes;
    };

    void embed(const Tile& tile);
    void norm(const Tile& tile);
    void qkv(const Tile& tile, Scratch& scratch);
    void place_qkv(const Tile& tile, uint32_t row, Span rows, const float* out);
    void attend(const Tile& tile, Scratch& scratch);
    void merge(const Tile& tile);
    void output(const Tile& tile, Scratch& scratch);
    void exchange(const Tile& tile, Scratch& scratch);
    void router(const Tile& tile, Scratch& scratch);
    void route_rows(const Tile& tile);
    void gate_up(const Tile& tile, Scratch& scratch);
    void down(const Tile& tile, Scratch& scratch);
    void head(const Tile& tile, Scratch& scratch);
    void gather(const Tile& tile);
    void fuse(const Tile& tile, Scratch& scratch);
    void query(const Tile& tile, Scratch& scratch);
    void keys(const Tile& tile, Scratch& scratch);

    void turn_angles(uint32_t position, float* angles) const;
    // Dims [first, last) of one head, from `in` (dim 0 of the head), rounded, turned, and put where
    // attention looks for them.
    void place_query(const AttentionShape& a, const float* in, Span dims, const float* angles,
                     float* to) const;
    void place_key(const AttentionShape& a, const float* in, Span dims, const float* angles,
                   const KvSpan& kv, uint32_t position) const;
    void place_value(const AttentionShape& a, const float* in, Span dims, const KvSpan& kv,
                     uint32_t position) const;
    // Calls each(row, out) for units [begin, end) of a drafter's projection of `scratch.rows`, in
    // spans of whole heads.
    template <typename Each>
    void in_heads(const Tile& tile, const PackedMatrix& matrix, uint32_t rows, Scratch& scratch,
                  Each each) const;
    // What row `row` sees: its own position and before, or in a block all of it.
    Span seen(uint32_t row, const AttentionShape& a) const;

    // Rows `scratch.rows` against units of a matrix; `scratch.blocks` where that is mxfp4.
    void multiply(const PackedMatrix& matrix, Span units, const Scratch& scratch, uint32_t rows,
                  float* out, size_t stride) const;
    void quantize(const float* x, uint32_t count, const Tile& tile, std::byte* out) const;
    Blocks blocks(const Tile& tile) const {
        return is_moe(tile) ? program_.request.blocks : Blocks::none;
    }

    // A sublayer's sums for the columns of `units`, [rows, kSpanRows]: onto `stream`, or into the
    // partial.
    void keep(const Tile& tile, uint32_t partial, const View<float>& stream, uint32_t rows,
              Span units, const float* sums);

    const PackedLayer& layer(const Tile& tile) const {
        return weights_.ranks[tile.rank].layers[tile.layer];
    }
    const PackedFeedForward& expert(const Tile& tile, uint32_t slot) const {
        const PackedLayer& at = layer(tile);
        return at.experts.empty() ? at.dense : at.experts[at_[tile.rank].routes.expert[slot]];
    }
    bool is_moe(const Tile& tile) const { return shape_.is_moe[tile.layer]; }
    RouteShape route_shape() const {
        return {program_.request.rows, shape_.experts, shape_.experts_per_token};
    }

    const Program& program_;
    const PackedWeights& weights_;
    const Kernels& kernels_;
    const Shape& shape_;
    StepInput step_;
    std::vector<Arena> arenas_;                                  // by rank
    std::vector<Buffers> at_;                                    // by rank
    std::vector<float> full_frequencies_, sliding_frequencies_;  // of the rotary pairs
    std::vector<uint32_t> live_;                                 // by layer
};

}  // namespace tessera
