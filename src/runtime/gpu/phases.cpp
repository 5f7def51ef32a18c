#include "runtime/gpu/phases.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/error.h"
#include "tiles/attention_gpu.h"
#include "tiles/kernels.h"

namespace tessera::gpu {
namespace {

// What decides how a matrix is cut: what a block streams, and what it takes to add up a group that
// blocks share: an arrival and a read of the parts. For an H100; the second is an estimate.
constexpr double kBytesPerUs = 24e3, kSharedUs = 3;
constexpr uint32_t kCutsMax = 16;
// An expert's unit of down is one warp's if it has at most so many pieces: longer ones would leave
// warps without work where few experts are wanted.
constexpr uint32_t kWholeUnitPieces = 4;
constexpr uint32_t kUnitBytes = kUnitRows * kRowsMax * sizeof(float);
constexpr uint32_t kDepositBytes = kAdders * kMultipliers * 2 * kUnitBytes;
// Positions that a ring holds beyond its window: rows of a step, and the window's first key may lie
// anywhere in its tile. Prompts are read in steps, so 64 as on the CPU.
constexpr uint32_t kRingSlack = 64 + kKeyTile;

uint32_t activation_bytes(uint32_t columns, uint32_t rows) {
    return (padded(columns, kPanelColumns) + 32) * 2 * rows;
}

// Items of the busiest block, and the most blocks that share a group: as Items in block.cuh has
// them.
struct Spread {
    uint32_t busiest = 0, sharers = 0;
};
Spread spread(uint32_t groups, uint32_t group_items, uint32_t cuts, uint32_t blocks) {
    const auto item_of = [&](uint32_t part) {
        return part / cuts * group_items + group_items * (part % cuts) / cuts;
    };
    Spread found;
    const uint32_t parts = groups * cuts;
    for (uint32_t b = 0; b < blocks; ++b) {
        const Span own = share(parts, b, blocks);
        found.busiest = std::max(found.busiest, item_of(own.end) - item_of(own.begin));
    }
    if (parts <= blocks) {
        found.sharers = cuts;
        return found;
    }
    const auto owner = [&](uint64_t part) { return ((part + 1) * blocks - 1) / parts; };
    for (uint32_t g = 0; g < groups; ++g) {
        const uint64_t first = uint64_t{g} * cuts;
        found.sharers = std::max(found.sharers,
                                 static_cast<uint32_t>(owner(first + cuts - 1) - owner(first) + 1));
    }
    return found;
}

class Compiler {
  public:
    Compiler(const Program& program, const DeviceWeights& weights, const CacheLayout& cache,
             uint32_t blocks)
        : r_(program.request),
          s_(program.request.shape),
          weights_(weights),
          cache_(cache),
          blocks_(blocks) {
        refuse_what_does_not_fit();
        for (const Tile& tile : program.tiles)
            if (tile.rank == 0) add(tile);
    }

    PhaseList result() { return std::move(out_); }

  private:
    void refuse_what_does_not_fit() const {
        if (s_.hidden % 8 != 0) fail("GPU: hidden_size {} is not a multiple of 8", s_.hidden);
        if (s_.experts > kRouteExperts || s_.experts_per_token > kRouteChoices)
            fail("GPU: {} experts, {} a token; at most {} and {}", s_.experts, s_.experts_per_token,
                 kRouteExperts, kRouteChoices);
        for (const AttentionShape* a : {&s_.full, &s_.sliding}) {
            if (a->head_dim % 16 != 0 || a->v_head_dim % 16 != 0 || a->head_dim > kHeadDimMax ||
                a->v_head_dim > kValueDimMax)
                fail("GPU: heads of {} and {} dims; the GPU takes multiples of 16, up to {} and {}",
                     a->head_dim, a->v_head_dim, kHeadDimMax, kValueDimMax);
            if (r_.draft && (a->head_dim != a->v_head_dim || a->head_dim > 16 * kHeadUnitsMax))
                fail("GPU: a drafter's heads of {} and {} dims; the GPU takes equal ones up to {}",
                     a->head_dim, a->v_head_dim, 16 * kHeadUnitsMax);
        }
    }

    void add(const Tile& tile) {
        const PackedLayer& layer = weights_.layers[tile.layer];
        switch (tile.op) {
            case Op::embed:
                phase(tile);
                return;
            case Op::norm:
                (tile.slot == kNormContext ? context_norm_ : norm_) = tile;
                return;
            case Op::qkv:
                matrix(normed(tile), layer.qkv);
                return;
            case Op::attend:
                attend(tile);
                return;
            case Op::output:
                matrix(phase(tile), layer.o);
                return;
            case Op::exchange:
                phase(tile).norm = tile.slot;
                (tile.slot == kPartialFuse ? fused_summed_ : summed_) = true;
                return;
            case Op::router:
                matrix(normed(tile), layer.router);
                return;
            case Op::gate_up:
                if (s_.is_moe[tile.layer]) {
                    if (tile.slot == 0) experts(tile, layer);
                } else {
                    matrix(normed(tile), layer.dense.gate_up, 2);
                }
                return;
            case Op::down:
                if (s_.is_moe[tile.layer]) {
                    expert_matrix(phase(tile), layer, &PackedFeedForward::down);
                } else {
                    matrix(phase(tile), layer.dense.down);
                }
                return;
            case Op::head:
                matrix(normed(tile), weights_.head);
                return;
            case Op::fuse:
                matrix(phase(tile), weights_.fuse);
                return;
            case Op::query:
                if (!context_taken_) take_context();
                query(tile, layer);
                return;
            case Op::keys:
                // Of a block; of the context alone, in a program that drafts nothing.
                if (!context_taken_ && r_.rows == 0) take_context();
                if (r_.rows > 0) block_keys(tile, layer);
                return;
            // Parts of other phases: the last to finish merges, every block routes, fuse reads
            // taps.
            case Op::merge:
            case Op::route:
            case Op::gather:
                return;
        }
    }

    Phase& phase(const Tile& tile) {
        Phase& p = out_.phases.emplace_back();
        p.op = tile.op;
        p.barrier = true;
        p.layer = tile.layer;
        p.sliding = s_.is_sliding[tile.layer];
        p.moe = s_.is_moe[tile.layer] && (tile.op == Op::gate_up || tile.op == Op::down);
        p.cache = cache_.layers[tile.layer];
        p.group_units = 1;
        p.cuts = 1;
        return p;
    }
    Phase& last() { return out_.phases.back(); }

    // A phase whose activations are the last norm's.
    Phase& normed(const Tile& tile) {
        Phase& p = phase(tile);
        p.norm = norm_.slot;
        p.tap = norm_.part;
        p.summed = summed_;
        const PackedLayer& of = weights_.layers[norm_.layer];
        if (norm_.slot == kNormInput) {
            set_gains(p, of.input_norm, 2u * norm_.layer);
        } else if (norm_.slot == kNormPost) {
            set_gains(p, of.post_norm, 2u * norm_.layer + 1);
        } else {
            set_gains(p, weights_.norm, 2 * s_.layers);
        }
        norm_.part = 0;
        return p;
    }

    // `row`: of bf16_gains.
    void set_gains(Phase& p, std::span<const float> gain, uint32_t row) const {
        p.gain = gain.data();
        if (weights_.gains != nullptr)
            p.gains = reinterpret_cast<const uint16_t*>(weights_.gains) + uint64_t{row} * s_.hidden;
    }

    // Cut so that blocks have even shares of it.
    Phase& matrix(Phase& p, const PackedMatrix& m, uint32_t group_units = 1) {
        set(p, m, group_units);
        const uint32_t items = p.group_items(), groups = m.units() / group_units;
        if (groups * group_units != m.units() || (p.op == Op::qkv && m.rows % 2 != 0))
            fail("GPU: {} of layer {} has {} rows, not whole groups of {}", op_name(p.op), p.layer,
                 m.rows, group_units * kUnitRows);
        double best = 1e300;
        for (uint32_t cuts = 1; cuts <= std::min(kCutsMax, items); ++cuts) {
            const double us = spread(groups, items, cuts, blocks_).busiest *
                                  static_cast<double>(p.item_units * p.item_bytes) / kBytesPerUs +
                              (cuts > 1 ? kSharedUs : 0);
            if (us >= best) continue;
            best = us;
            p.cuts = cuts;
        }
        p.pieces_max = spread(groups, items, p.cuts, blocks_).sharers;
        p.counters = take_counters(groups);
        // Phases without a barrier between them may not share these.
        if (p.barrier) partials_ = 0;
        p.partials = partials_;
        partials_ += uint64_t{groups} * p.pieces_max * group_units * kUnitRows * kRowsMax;
        out_.partial_floats = std::max(out_.partial_floats, partials_);
        need_activations(activation_bytes(m.columns, kRowsMax));
        if (group_units > 2) out_.needs.sums = std::max(out_.needs.sums, group_units);
        return p;
    }

    void set(Phase& p, const PackedMatrix& m, uint32_t group_units) const {
        p.matrix = m;
        const uint32_t halves = m.format == Format::f32 ? 2 : 1;  // pieces of a panel
        const uint32_t pieces = m.panels() * halves;
        p.item_pieces = p.moe && p.op == Op::down && pieces <= kWholeUnitPieces ? pieces : 1;
        p.item_bytes = panel_bytes(m.format) / halves * p.item_pieces;
        p.unit_items = pieces / p.item_pieces;
        p.item_units = group_units == 2 ? 2 : 1;
        p.page_items = std::min(kMultipliers, kPageBytes / (p.item_units * p.item_bytes));
        p.group_units = group_units;
        // Shares are made in 32 bits.
        const uint64_t most =
            std::max<uint64_t>(uint64_t{m.units()} * kCutsMax, uint64_t{m.units()} * kRoutePairs);
        if (most * (blocks_ + 1) > UINT32_MAX || uint64_t{m.units()} * pieces > UINT32_MAX / 64)
            fail("GPU: {} of layer {} has {} x {} weights, more than a phase takes", op_name(p.op),
                 p.layer, m.rows, m.columns);
    }

    void experts(const Tile& tile, const PackedLayer& layer) {
        Phase& p = normed(tile);
        p.keeps = true;  // of the router
        p.vector = layer.correction_bias.data();
        expert_matrix(p, layer, &PackedFeedForward::gate_up);
    }

    void expert_matrix(Phase& p, const PackedLayer& layer, PackedMatrix PackedFeedForward::*which) {
        set(p, layer.experts.front().*which, p.op == Op::gate_up ? 2 : 1);
        p.expert_bytes = layer.experts.size() > 1
                             ? static_cast<uint64_t>((layer.experts[1].*which).data - p.matrix.data)
                             : 0;
        for (size_t e = 0; e < layer.experts.size(); ++e)
            CHECK((layer.experts[e].*which).data == p.matrix.data + e * p.expert_bytes);
        p.vector = layer.correction_bias.data();  // a launch of its own routes anew
        if (p.op == Op::gate_up) {
            need_activations(activation_bytes(p.matrix.columns, kRowsMax));
            return;
        }
        need_activations(activation_bytes(p.matrix.columns, kRowsMax * s_.experts_per_token + 1));
        out_.needs.direct = out_.needs.direct && p.direct();
        const uint32_t own = (p.matrix.units() + blocks_ - 1) / blocks_;
        out_.needs.contributions = std::max<uint32_t>(
            out_.needs.contributions, kRoutePairs * own * kUnitRows * sizeof(float));
    }

    void attend(const Tile& tile) {
        // One tile a kv head and share of its chunks: one phase.
        if (!out_.phases.empty() && last().op == Op::attend && last().layer == tile.layer) return;
        Phase& p = phase(tile);
        const AttentionShape& a = s_.attention(tile.layer);
        const PackedLayer& layer = weights_.layers[tile.layer];
        p.vector = layer.sink.empty() ? nullptr : layer.sink.data();
        const Heads h = heads_of(a, r_.ranks, 0, r_.context);
        // Every run of rows has whole tiles of its own.
        const uint32_t tiles = h.kv_heads * (h.group() * kRowsMax / 16 + kRowsMax);
        p.counters = take_counters(tiles * h.dim_shares);
        const uint32_t chunks =
            (p.sliding ? std::min(r_.context, a.window + kRowsMax) : r_.context) / h.chunk + 2;
        out_.part_chunks = std::max(out_.part_chunks, chunks);
        out_.part_floats =
            std::max(out_.part_floats, uint64_t{tiles} * h.dim_shares * part_floats(h.dims));
        need_activations(attention_bytes(a.head_dim, h.dims));
    }

    // Keys and values of the context, for all layers: they wait for nothing but the context's norm.
    void take_context() {
        context_taken_ = true;
        for (uint32_t i = 0; i < s_.layers; ++i) {
            Tile tile = context_norm_;
            tile.op = Op::keys;
            tile.layer = static_cast<uint16_t>(i);
            Phase& p = phase(tile);
            p.norm = kNormContext;
            p.summed = fused_summed_;
            set_gains(p, weights_.context_norm, 2 * s_.layers + 1);
            p.barrier = i == 0;
            p.keeps = i > 0;
            p.vector = weights_.layers[i].key_norm.data();
            matrix(p, weights_.layers[i].keys, head_units(r_, i));
        }
    }

    // The first layer's reads what was embedded before the context was fused.
    void query(const Tile& tile, const PackedLayer& layer) {
        Phase& p = normed(tile);
        p.barrier = tile.layer > 0;
        p.vector = layer.query_norm.data();
        matrix(p, layer.query, head_units(r_, tile.layer));
    }

    void block_keys(const Tile& tile, const PackedLayer& layer) {
        Phase& p = normed(tile);
        p.barrier = false;
        p.keeps = true;  // of the query
        p.vector = layer.key_norm.data();
        matrix(p, layer.keys, head_units(r_, tile.layer));
    }

    uint32_t take_counters(uint32_t count) {
        const uint32_t first = out_.counters;
        out_.counters += count;
        return first;
    }

    void need_activations(uint32_t bytes) {
        out_.needs.activations = std::max(out_.needs.activations, bytes);
    }

    const PlanRequest& r_;
    const Shape& s_;
    const DeviceWeights& weights_;
    const CacheLayout& cache_;
    uint32_t blocks_;
    PhaseList out_;
    Tile norm_, context_norm_;
    bool context_taken_ = false;
    bool summed_ = false, fused_summed_ = false;  // by an exchange: the stream, the context
    uint64_t partials_ = 0;
};

}  // namespace

CacheLayout::CacheLayout(const Shape& shape, uint32_t ranks, uint32_t context) {
    for (uint32_t i = 0; i < shape.layers; ++i) {
        const AttentionShape& a = shape.attention(i);
        const uint32_t all = padded(context, kKeyTile);
        const uint32_t ring =
            a.window == 0 ? all : std::min(all, padded(a.window + kRingSlack, kKeyTile));
        layers.push_back({bytes, ring});
        bytes += layers.back().bytes(heads_of(a, ranks, 0, context));
    }
}

Heads heads_of(const AttentionShape& a, uint32_t ranks, uint32_t angles, uint32_t context) {
    const AttentionPart part = attention_part(a, 0, ranks);
    // A chunk is a task. Of a short window there is one: what it takes to merge several is more
    // than they save; its tasks have a share of the values' dims each, if there are blocks for
    // them. Else there are as many as give the blocks of a card a task each, at 8 rows.
    constexpr uint32_t kTasks = 128, kChunk = kAttendWarps * kKeyTile, kShort = 256,
                       kWhole = 1u << 20;
    const uint32_t kv_heads = part.kv_heads.count();
    const uint32_t tiles = kv_heads * ((part.group() * kRowsMax + kQueries - 1) / kQueries);
    const uint32_t keys = a.window > 0 ? a.window : context, chunks = std::max(1u, kTasks / tiles);
    const uint32_t chunk = a.window > 0 && a.window <= kShort
                               ? kWhole
                               : std::max(kChunk, padded((keys + chunks - 1) / chunks, kChunk));
    const bool whole = chunk == kWhole;
    const uint32_t shares = (a.v_head_dim + kValueDims - 1) / kValueDims;
    const bool shared = whole && tiles * shares <= kTasks;
    return {part.heads.count(),
            part.kv_heads.count(),
            a.head_dim,
            a.v_head_dim,
            a.rotary_dims,
            a.window,
            angles,
            chunk,
            shared ? kValueDims : a.v_head_dim,
            shared ? shares : 1,
            1.0f / std::sqrt(static_cast<float>(a.head_dim)),
            part.group()};
}

PhaseList phases_of(const Program& program, const DeviceWeights& weights, const CacheLayout& cache,
                    uint32_t blocks) {
    return Compiler(program, weights, cache, blocks).result();
}

SharedNeeds SharedNeeds::with(const SharedNeeds& other) const {
    return {std::max(activations, other.activations), std::max(sums, other.sums),
            std::max(contributions, other.contributions), direct && other.direct};
}

Shared lay_out(const SharedNeeds& needs, uint32_t available) {
    Shared at{};
    uint32_t next = 0;
    const auto take = [&](uint32_t bytes) {
        const uint32_t first = next;
        next = padded(next + bytes, 128);
        return first;
    };
    at.activations = take(needs.activations);
    at.deposits = take(kDepositBytes);
    at.sums = take(needs.sums * kUnitBytes);
    // Where every expert's unit is one page, what it gives needs no deposits.
    at.contributions = needs.direct && needs.contributions <= kDepositBytes
                           ? at.deposits
                           : take(needs.contributions);
    at.routing = take(sizeof(Routing) + kCountsBytes);
    at.step = take(sizeof(Step));
    at.phases = take(2 * sizeof(Phase));
    at.ring = next;

    constexpr uint32_t kPlace = kPageBytes + 16;  // and its two barriers
    constexpr uint32_t kPagesMin = 3;             // as far as a warp may be behind who waits for it
    if (at.ring + kPagesMin * kPlace > available)
        fail(
            "GPU: activations of 8 rows take {} kB of a block's {} kB of shared memory, which "
            "leaves no room for weights; more ranks, or the CPU, would do",
            at.ring >> 10, available >> 10);
    at.pages = std::min((available - at.ring) / kPlace, kRingPagesMax);
    at.bytes = at.ring + at.pages * kPlace;
    return at;
}

uint64_t phase_bytes(const Phase& phase) {
    return phase.matrix.data == nullptr ? 0 : phase.matrix.bytes();
}

}  // namespace tessera::gpu
