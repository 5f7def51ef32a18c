// What host and device say to each other, in plain structs: the network's buffers, the phases of a
// step, and one step's input. Pointers are the device's unless a comment says otherwise.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plan/program.h"
#include "tiles/packed.h"
#include "tiles/routes.h"

namespace tessera::gpu {

inline constexpr uint32_t kRowsMax = 8;       // of a step: the N of an mma
inline constexpr uint32_t kHeadUnitsMax = 8;  // units of a drafter's head: 128 dims
// Of a ring of weights: an item for every multiplier of gate and up in mxfp4 and of fp8, for half
// of them of bf16. Two or three such pages in each SM keep the memory busy (docs/GPU.md), and what
// a warp does once a page is as long as a panel's products.
inline constexpr uint32_t kPageBytes = 26112;
// Warps of a block, but for the one that loads. Four warps on each of an SM's four parts leave a
// thread 128 registers. Where weights stream, three of each part multiply and others add up.
inline constexpr uint32_t kConsumers = 14, kMultipliers = 12, kAdders = kConsumers - kMultipliers;
inline constexpr uint32_t kRingPagesMax = 8;
inline constexpr uint32_t kCountsBytes = 192;  // of a block's counts, in shared memory
inline constexpr uint32_t kKeyTile = 16;       // positions that lie together in a cache

// One kind of attention, on this rank.
struct Heads {
    uint32_t heads, kv_heads, head_dim, v_head_dim, rotary_dims;
    uint32_t window;       // 0: all
    uint32_t angles;       // where its (cos, sin) begin in a row of angles
    uint32_t chunk;        // keys of one task of attention, a multiple of kKeyTile
    uint32_t dims;         // of the values, that a task has: a multiple of 32, or all
    uint32_t dim_shares;   // tasks that share the values' dims
    float scale;           // of a score
    uint32_t group_heads;  // query heads of a kv head

    constexpr uint32_t group() const { return group_heads; }
};

// Where a layer's keys and values lie in a sequence's cache: for each kv head tiles of kKeyTile
// positions, keys [head_dim / 2][position][2] and values [position / 2][v_head_dim][2], bf16.
struct CachePlace {
    uint64_t offset;  // bytes
    uint32_t ring;    // positions: p lies at p % ring

    constexpr uint64_t key_bytes(const Heads& h) const { return uint64_t{ring} * h.head_dim * 2; }
    constexpr uint64_t value_bytes(const Heads& h) const {
        return uint64_t{ring} * h.v_head_dim * 2;
    }
    constexpr uint64_t bytes(const Heads& h) const {
        return h.kv_heads * (key_bytes(h) + value_bytes(h));
    }
};

// What the blocks do between two barriers, or without one: an op of the plan, over all its tiles.
struct Phase {
    Op op;
    bool barrier;  // waits until every block has done what came before
    bool keeps;    // finds its activations where the phase before left them
    bool moe;      // gate_up and down of experts
    bool sliding;  // the kind of its attention
    uint16_t layer;
    uint16_t norm;        // kNorm...: of the activations; of an exchange: its slot, kPartial...
    uint16_t tap;         // 1 + which tap of the drafter's the stream is, or 0
    bool summed;          // of a norm: an exchange has left its rows' squares
    PackedMatrix matrix;  // of one expert, where there are many
    // What one warp multiplies at a time: the same piece of a unit, or of gate and up of both; of
    // experts' down a whole unit if that is short. Its units, each with so many pieces and bytes of
    // it; and how many items there are of a unit, and of a page.
    uint32_t item_units, item_pieces, item_bytes;
    uint32_t unit_items, page_items;
    uint32_t group_units;   // that one epilogue needs together
    uint32_t cuts;          // a group's items are dealt out in so many parts
    uint32_t pieces_max;    // blocks that share a group at most
    uint32_t counters;      // of arrivals, one a group: where they begin
    uint64_t partials;      // floats: where they begin
    uint64_t expert_bytes;  // from one expert's matrix to the next's
    const float* gain;      // of the norm
    const uint16_t* gains;  // bf16  the same, if that is what all of the network's are; else null
    const float* vector;    // sinks, a router's bias, or gains of a drafter's heads
    CachePlace cache;

    constexpr uint32_t groups() const { return matrix.units() / group_units; }
    constexpr uint32_t group_items() const { return unit_items * (group_units / item_units); }
    constexpr uint32_t unit_bytes() const { return unit_items * item_bytes; }
    // Whether a unit of experts' down has one item: no other warp has a part of its sums.
    constexpr bool direct() const { return moe && op == Op::down && unit_items == 1; }
};

struct Shared {  // bytes from the start of a block's shared memory
    uint32_t activations;
    uint32_t deposits, sums, contributions, routing, step, phases, ring;
    uint32_t pages;  // of the ring
    uint32_t bytes;
};

// Times of one phase in one block, ns of globaltimer: when its first warp had nothing left to do in
// the phase before; when all blocks had; when its activations were ready; when its pages were done
// (of the first warp); when all was.
struct Stamp {
    uint64_t arrived = 0, began = 0, prepared = 0, streamed = 0, ended = 0;
    // Of the first warp's streaming, by the kernel that watches (watched.cu): ns that it waited for
    // pages to come, and that it spent on sums when its items of a unit were done.
    uint64_t paged = 0, summed = 0;
};

struct Network {
    uint32_t hidden, vocab, experts, per_token;
    uint32_t gated_columns;  // of a row of `gated`
    float epsilon, value_scale, routed_scale;
    bool normalize_top_k;
    bool draft;  // attention sees the whole block, row 0 is embedded and the others are masks
    Heads full, sliding;
    Shared shared;

    const uint16_t* embedding;  // bf16  vocab, hidden
    const uint16_t* mask;       // bf16  hidden
    const float* angles;        // context, full.rotary_dims + sliding.rotary_dims
    uint32_t angle_columns;

    // Between phases, in the order of the plan's Value; bf16 where a value is rounded to it anyway.
    uint16_t* residual;  // bf16  rows, hidden
    uint16_t* query;     // bf16  rows, heads * head_dim
    uint16_t* mixed;     // bf16  rows, heads * v_head_dim
    uint16_t* gated;     // bf16  rows * experts a token, gated_columns
    uint16_t* fused;     // bf16  context rows, hidden
    float* scores;       // rows, experts
    float* logits;       // rows, vocab
    float* parts;        // attention: tiles of 16 queries, chunks, 16 * (v_head_dim + 2)
    uint32_t part_chunks;
    float* partials;  // matrices: groups, pieces, units * 128

    // Ranks joined by exchanges: rank r's partial [rows, hidden] of the sum `slot` is at
    // inbox + (slot * ranks + r) * rows * hidden. On one card, which writes what it would send to
    // its peers into its own memory, `share` of the sum is taken, one over their number.
    uint32_t ranks;
    float share;
    float* inbox;
    float* squares;  // rows, blocks: of what an exchange wrote last, its share of a row's squares

    uint32_t* arrivals;  // counters that wrap
    uint64_t* barrier;   // event
    uint32_t* live;      // by layer: distinct experts of the last step
    Stamp* stamps;       // phases, blocks; or null
    void* distress;      // one a block, host memory
};

// Rows of one sequence: neighbours in the step, at consecutive positions.
struct Run {
    uint32_t first, rows;
    uint32_t position;   // of the first
    uint32_t seen_from;  // the first position that the cache has
    std::byte* cache;
};

struct Step {
    uint32_t rows;
    uint32_t logits_from;
    uint32_t runs;
    uint32_t tokens[kRowsMax];
    uint32_t positions[kRowsMax];
    uint16_t* taps[kRowsMax];  // where a row's tapped residuals go [taps, hidden]; or null
    Run run[kRowsMax];
    // Of a drafter: what the target has committed since.
    uint32_t context_rows;
    uint32_t context_position;  // of the first
    uint32_t tap_columns;
    const uint16_t* context_taps[kRowsMax];
};

}  // namespace tessera::gpu
