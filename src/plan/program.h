// A step as data: tiles in the queues of workers, ordered by events that only count up. What the
// tiles compute, if run one after another in the order of `tiles`, defines the step; check.h proves
// that any fair schedule of the queues computes the same.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/ranks.h"
#include "model/shape.h"
#include "tiles/packed.h"

namespace tessera {

// What a tile does. `begin` and `end` of the tile count, per op:
enum class Op : uint8_t {
    embed,     // rows: the embedding becomes the residual stream; angles of rotation
    norm,      // rows: normalised for what follows (`slot` says which gain). With a `part`, the
               // stream is also kept for the drafter, as its tap part - 1
    qkv,       // units of the fused projection; q to its buffer, k and v to the cache
    attend,    // query heads of kv head `slot`; chunks of keys c with c % shares == part
    merge,     // query heads: the parts of their chunks become one
    output,    // units of o_proj: onto the residual stream, or to `partial` with several ranks
    exchange,  // columns: the sum of all ranks' partials, in rank order, onto the stream
    router,    // units of the router
    route,     // everything: top-k of every row; which expert fills which slot
    gate_up,   // pairs of units of the expert in slot `slot` (of the dense layer: slot 0)
    down,      // units of every live slot's expert: onto the stream, or to `partial`
    head,      // units of the head
    // Of a drafter alone, which has query and keys in the place of qkv: the context that it reads
    // has keys and values, and no queries.
    gather,  // context rows: the target's tapped residuals, side by side
    fuse,    // units of fc: what was gathered becomes one row; or to `partial`
    query,   // units of whole heads, normalised head by head
    keys,    // units of k and v, of k whole heads: of block and context, to the cache
};
inline constexpr Op kOps[] = {
    Op::embed, Op::norm,    Op::qkv,  Op::attend, Op::merge,  Op::output, Op::exchange, Op::router,
    Op::route, Op::gate_up, Op::down, Op::head,   Op::gather, Op::fuse,   Op::query,    Op::keys};
std::string_view op_name(Op op);

inline constexpr uint32_t kNoEvent = UINT32_MAX;

struct Tile {
    Op op = Op::embed;
    uint8_t rank = 0;
    uint16_t layer = 0;
    uint16_t slot = 0;
    uint16_t part = 0;
    uint32_t begin = 0;
    uint32_t end = 0;
    uint32_t shares = 0;
    uint32_t wait = kNoEvent;  // event
    uint32_t count = 0;        // signals of it that must have come in this step
    uint32_t done = kNoEvent;  // event that is signalled after the tile

    bool operator==(const Tile&) const = default;
};
static_assert(sizeof(Tile) == 32);

// Gains that a norm tile's `slot` names.
inline constexpr uint16_t kNormInput = 0, kNormPost = 1, kNormFinal = 2, kNormContext = 3;

// Two partials take turns, and a drafter's context has one; an exchange tile's `slot` names it.
inline constexpr uint16_t kPartialOutput = 0, kPartialDown = 1, kPartialFuse = 2;

// What a buffer holds. One of each on every rank; all but the cache live in the step's arena.
enum class Value : uint8_t {
    residual,  // f32  rows, hidden
    angles,    // f32  rows, (cos, sin) of the full kind's rotary pairs, then the sliding kind's
    normed,    // f32  rows, hidden
    normed_blocks,  // Int16Block or Int8Block  rows, hidden / 32: where experts are mxfp4
    query,          // f32  rows, heads * head_dim
    cache,          // this step's keys and values of one layer; columns: k rows, then v rows of qkv
    parts,          // f32  rows, heads, chunks: unmerged attention
    mixed,          // f32  rows, heads * v_head_dim
    partial,        // f32  rows, hidden: one rank's share of a sum, where there are several
    scores,         // f32  rows, experts
    routes,         // see tiles/routes.h
    gated,          // f32  rows * experts a token, width
    gated_blocks,   // Int16Block or Int8Block  the same, width / 32
    logits,         // f32  rows, the rank's share of the vocabulary
    taps,           // what a step leaves for the drafter: rows, taps. With the cache, the only
                    // one outside the arena
    tapped,         // f32  context rows, the rank's share of the tapped columns
    fused,          // f32  context rows, hidden
    context,        // f32  context rows, hidden: `fused`, normalised
    context_angles,  // f32  context rows, as `angles`
};
std::string_view value_name(Value value);

// `rows` x `columns` of grain that tiles read and write spans of; `bytes` in the arena.
struct Buffer {
    Value value;
    uint8_t rank;
    uint16_t layer;  // of a cache; of a partial: which
    uint32_t rows;
    uint32_t columns;
    uint64_t row_bytes;
    uint64_t offset = 0;  // in the rank's arena

    uint64_t bytes() const { return rows * row_bytes; }
};

// Whether its rows are those of a drafter's context, not of the step.
bool is_context(const Buffer& buffer);

// What the planner needs to know; everything else follows.
struct PlanRequest {
    Shape shape;
    uint32_t ranks = 1;
    uint32_t workers = 1;          // of each rank
    uint32_t rows = 1;             // at most, a step may have fewer
    uint32_t context = 0;          // positions of a sequence at most
    Blocks blocks = Blocks::none;  // of activations, where experts are mxfp4
    std::vector<uint32_t> taps;    // layers whose residual stream is kept for a drafter, ascending

    // Of a drafter's program: `shape` is its layers_of, `rows` its block, or 0 to take in context
    // and draft nothing.
    struct Draft {
        uint32_t context_rows = 1;  // that the target has committed since, at most
        uint32_t taps = 1;          // that the target keeps of a row
    };
    std::optional<Draft> draft;

    uint32_t context_rows() const { return draft ? draft->context_rows : 0; }
};

struct Program {
    PlanRequest request;
    std::vector<Buffer> buffers;
    std::vector<Tile> tiles;                    // in the order that defines them
    std::vector<std::vector<uint32_t>> queues;  // by worker, rank by rank: indices of tiles
    std::vector<uint32_t> signals;              // by event: how often a step signals it
    uint64_t arena_bytes = 0;                   // of a rank

    uint32_t workers() const { return request.ranks * request.workers; }
};

// A pure function: equal requests, equal programs. The shape has no ranks_problem.
Program plan(const PlanRequest& request);

// The same up to and including tile `last`: for those who look for the first tile that lies. It is
// no whole step, so it does not pass check.
Program truncated(const Program& program, uint32_t last);

// ------------------------------------------------------------------ what tiles touch

// A rectangle of a buffer's grain.
struct Access {
    uint32_t buffer;
    Span rows;
    Span columns;
    bool write;
};

// What the tile reads and writes, reads first. A dead slot's tile touches nothing: this is the most
// that it may.
std::vector<Access> accesses(const Program& program, const Tile& tile);

// The weights that a tile reads: which matrix of which layer, and which of its units.
enum class Source : uint8_t { none, qkv, output, router, gate_up, down, head, fuse, query, keys };
struct WeightSpan {
    Source source = Source::none;
    Span units;
};
WeightSpan weight_span(const Tile& tile);

// Units of that matrix on a rank (ranks differ in their share of the vocabulary alone), and bytes
// of one of them in tile order. For gate_up and down: of one expert, or of the dense layer.
uint32_t source_units(const PlanRequest& request, Source source, uint32_t layer, uint32_t rank = 0);
uint64_t source_unit_bytes(const PlanRequest& request, Source source, uint32_t layer);

// Experts that a step can need at once, 1 in a dense layer.
uint32_t slot_count(const PlanRequest& request, uint32_t layer);

// Index of the buffer; CHECKs that it is there.
uint32_t find_buffer(const Program& program, Value value, uint32_t rank, uint32_t layer = 0);

// Whether a row's keys in the layer always fit one chunk: a window at most as long (in a drafter,
// with the rest of the block). Then the attend tile writes its heads' output itself, else merge
// tiles do.
bool is_one_chunk(const PlanRequest& request, uint32_t layer);

// Units that must stay together in a drafter's query and keys: a head's.
uint32_t head_units(const PlanRequest& request, uint32_t layer);

// Chunks of keys that a row can see at most, over all layers that are merged.
uint32_t chunks_max(const PlanRequest& request);

// Attend tiles that a kv head's chunks are dealt out to: 1 where there is one chunk.
uint32_t chunk_shares(const PlanRequest& request, uint32_t layer);

}  // namespace tessera
