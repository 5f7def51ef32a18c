// Turns a shape into tiles, phase by phase. A phase is all tiles of one op in one layer; every
// worker has at most one span of it (of the experts: one for each slot), and its last tile there
// signals the phase's event. The next phase waits until all have.
#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "plan/memory.h"
#include "plan/program.h"
#include "tiles/kernels.h"
#include "tiles/routes.h"

namespace tessera {
namespace {

// Gate and up in pairs of units make 16 values of an expert's width; two pairs make a block that
// can be quantised.
constexpr uint32_t kGateUpPairs = 2;

class Planner {
  public:
    explicit Planner(const PlanRequest& request) : s_(request.shape) {
        program_.request = request;
        program_.queues.resize(program_.workers());
        load_.resize(program_.workers());
        phase_load_.resize(program_.workers());
        event_.assign(request.ranks, kNoEvent);
    }

    Program build() {
        add_buffers();
        program_.request.draft ? draft() : target();
        lay_out_buffers(program_);
        return std::move(program_);
    }

  private:
    // ---------------------------------------------------------------- the forward pass

    void target() {
        by_rows(Op::embed, 0);
        for (uint32_t i = 0; i < s_.layers; ++i) {
            attention(i);
            if (s_.is_moe[i]) {
                experts(i);
            } else {
                dense(i);
            }
        }
        by_rows(Op::norm, s_.layers - 1, kNormFinal, tap_after(s_.layers - 1));
        by_units(Op::head, Source::head, s_.layers - 1);
    }

    void attention(uint32_t i) {
        by_rows(Op::norm, i, kNormInput, i > 0 ? tap_after(i - 1) : uint16_t{0});
        by_units(Op::qkv, Source::qkv, i);
        mix(i);
    }

    // What follows the projections.
    void mix(uint32_t i) {
        attend(i);
        if (!is_one_chunk(program_.request, i)) merge(i);
        by_units(Op::output, Source::output, i);
        exchange(i, kPartialOutput);
        by_rows(Op::norm, i, kNormPost);
    }

    // `part` of the norm tile that reads the stream after layer i.
    uint16_t tap_after(uint32_t i) const {
        const std::vector<uint32_t>& taps = program_.request.taps;
        const auto found = std::ranges::find(taps, i);
        return found == taps.end() ? uint16_t{0}
                                   : narrow(static_cast<uint32_t>(found - taps.begin()) + 1);
    }

    void experts(uint32_t i) {
        by_units(Op::router, Source::router, i);
        begin_phase();
        for (uint32_t rank = 0; rank < ranks(); ++rank)
            add(rank, 0, {.op = Op::route, .layer = narrow(i)});
        end_phase();
        begin_phase();
        for (uint32_t slot = 0; slot < slot_count(program_.request, i); ++slot)
            spread(Op::gate_up, i, gate_up_pairs(i), kGateUpPairs, slot);
        end_phase();
        by_units(Op::down, Source::down, i);
        exchange(i, kPartialDown);
    }

    void dense(uint32_t i) {
        begin_phase();
        spread(Op::gate_up, i, gate_up_pairs(i), kGateUpPairs, 0);
        end_phase();
        by_units(Op::down, Source::down, i);
        exchange(i, kPartialDown);
    }

    // ---------------------------------------------------------------- the drafter

    // The context's rows become keys and values; the block's go through the layers.
    void draft() {
        const uint32_t rows = program_.request.rows, context = program_.request.context_rows();
        begin_phase();
        if (rows > 0) spread(Op::embed, 0, rows, 1, 0);
        spread(Op::gather, 0, context, 1, 0);
        end_phase();
        by_units(Op::fuse, Source::fuse, 0);
        exchange(0, kPartialFuse);
        begin_phase();
        spread(Op::norm, 0, context, 1, kNormContext);
        if (rows > 0) spread(Op::norm, 0, rows, 1, kNormInput);
        end_phase();
        if (rows == 0) {
            begin_phase();
            for (uint32_t i = 0; i < s_.layers; ++i)
                spread_units(Op::keys, Source::keys, i, head_units(program_.request, i));
            return end_phase();
        }
        for (uint32_t i = 0; i < s_.layers; ++i) {
            if (i > 0) by_rows(Op::norm, i, kNormInput);
            begin_phase();
            spread_units(Op::query, Source::query, i, head_units(program_.request, i));
            spread_units(Op::keys, Source::keys, i, head_units(program_.request, i));
            end_phase();
            mix(i);
            dense(i);
        }
        by_rows(Op::norm, s_.layers - 1, kNormFinal);
        by_units(Op::head, Source::head, s_.layers - 1);
    }

    // ---------------------------------------------------------------- phases

    void by_rows(Op op, uint32_t layer, uint16_t slot = 0, uint16_t part = 0) {
        begin_phase();
        spread(op, layer, program_.request.rows, 1, slot, part);
        end_phase();
    }

    void by_units(Op op, Source source, uint32_t layer) {
        begin_phase();
        spread_units(op, source, layer, 1);
        end_phase(op == Op::output || op == Op::down || op == Op::fuse);
    }

    uint32_t gate_up_pairs(uint32_t layer) const {
        return source_units(program_.request, Source::gate_up, layer) / 2;
    }

    // A kv head's query heads and chunks are shared out until every worker has some: chunks where
    // there can be many, else heads.
    void attend(uint32_t i) {
        begin_phase();
        for (uint32_t rank = 0; rank < ranks(); ++rank) {
            const AttentionPart part = attention_part(s_.attention(i), rank, ranks());
            const uint32_t wanted = (workers() + part.kv_heads.count() - 1) / part.kv_heads.count();
            const uint32_t shares = chunk_shares(program_.request, i);
            const bool one = is_one_chunk(program_.request, i);
            const uint32_t pieces = one ? std::min(wanted, part.group()) : 1;
            uint32_t count = 0;
            for (uint32_t kv = 0; kv < part.kv_heads.count(); ++kv) {
                for (uint32_t piece = 0; piece < pieces; ++piece) {
                    const Span heads = share(part.group(), piece, pieces);
                    for (uint32_t share = 0; share < shares; ++share, ++count) {
                        add(rank, count % workers(),
                            {.op = Op::attend,
                             .layer = narrow(i),
                             .slot = narrow(kv),
                             .part = narrow(share),
                             .begin = kv * part.group() + heads.begin,
                             .end = kv * part.group() + heads.end,
                             .shares = shares});
                    }
                }
            }
        }
        end_phase();
    }

    void merge(uint32_t i) {
        begin_phase();
        for (uint32_t rank = 0; rank < ranks(); ++rank) {
            const AttentionPart part = attention_part(s_.attention(i), rank, ranks());
            spread_on(rank, Op::merge, i, part.heads.count(), 1, 0);
        }
        end_phase();
    }

    // Waits for all ranks. A rank that runs ahead writes its next partial into the other buffer: by
    // the time it needs this one again, every rank has passed the exchange between.
    void exchange(uint32_t i, uint16_t partial) {
        if (ranks() == 1) return;
        begin_phase();
        // In whole units, as the tiles that wrote the partials.
        spread(Op::exchange, i, (s_.hidden + kUnitRows - 1) / kUnitRows, 1, partial);
        end_phase();
    }

    // ---------------------------------------------------------------- tiles

    void spread(Op op, uint32_t layer, uint32_t total, uint32_t granule, uint32_t slot,
                uint16_t part = 0) {
        for (uint32_t rank = 0; rank < ranks(); ++rank)
            spread_on(rank, op, layer, total, granule, slot, part);
    }

    void spread_units(Op op, Source source, uint32_t layer, uint32_t granule) {
        for (uint32_t rank = 0; rank < ranks(); ++rank)
            spread_on(rank, op, layer, source_units(program_.request, source, layer, rank), granule,
                      0);
    }

    // `total` in equal runs of whole granules over a rank's workers. Who had least in this phase so
    // far, and among equals least in the whole program, takes what is left over. The last granule
    // may be cut short: it is the last of those left over, or else of who had most. So no two
    // workers of a phase are ever more than a granule apart.
    void spread_on(uint32_t rank, Op op, uint32_t layer, uint32_t total, uint32_t granule,
                   uint32_t slot, uint16_t part = 0) {
        const uint32_t granules = (total + granule - 1) / granule;
        const uint32_t least = granules / workers(), more = granules % workers();
        std::vector<uint32_t> order(workers());
        std::iota(order.begin(), order.end(), 0u);
        std::ranges::stable_sort(order, {}, [&](uint32_t w) {
            return std::pair(phase_load_[rank * workers() + w], load_[rank * workers() + w]);
        });
        std::vector<uint32_t> count(workers(), least);
        for (uint32_t i = 0; i < more; ++i) ++count[order[i]];
        if (more > 0) std::rotate(order.begin() + more - 1, order.begin() + more, order.end());
        uint32_t begin = 0;
        for (const uint32_t w : order) {
            if (count[w] == 0) continue;
            const uint32_t end = std::min(total, begin + count[w] * granule);
            add(rank, w,
                {.op = op,
                 .layer = narrow(layer),
                 .slot = narrow(slot),
                 .part = part,
                 .begin = begin,
                 .end = end});
            begin = end;
        }
    }

    void begin_phase() {
        phase_begin_ = static_cast<uint32_t>(program_.tiles.size());
        std::ranges::fill(phase_load_, 0u);
    }

    void add(uint32_t rank, uint32_t worker, Tile tile) {
        tile.rank = static_cast<uint8_t>(rank);
        tile.wait = event_[rank];
        tile.count = tile.wait == kNoEvent ? 0 : program_.signals[tile.wait];
        tile.done = kNoEvent;
        const uint32_t queue = rank * workers() + worker;
        program_.queues[queue].push_back(static_cast<uint32_t>(program_.tiles.size()));
        // Bytes of weights; where there are none, a tile counts a little.
        const WeightSpan span = weight_span(tile);
        const uint64_t bytes =
            span.source == Source::none
                ? 1
                : span.units.count() * source_unit_bytes(program_.request, span.source, tile.layer);
        load_[queue] += bytes;
        phase_load_[queue] += bytes;
        program_.tiles.push_back(tile);
    }

    // The last tile of each worker signals: its earlier ones are done by then. Ranks have events of
    // their own, or one together where all wait for all.
    void end_phase(bool together = false) {
        const auto first = static_cast<uint32_t>(program_.signals.size());
        program_.signals.resize(first + (together ? 1 : ranks()), 0);
        for (uint32_t rank = 0; rank < ranks(); ++rank) {
            event_[rank] = first + (together ? 0 : rank);
            for (uint32_t worker = 0; worker < workers(); ++worker) {
                const auto& queue = program_.queues[rank * workers() + worker];
                if (queue.empty() || queue.back() < phase_begin_) continue;
                program_.tiles[queue.back()].done = event_[rank];
                ++program_.signals[event_[rank]];
            }
            CHECK(program_.signals[event_[rank]] > 0);
        }
    }

    // ---------------------------------------------------------------- buffers

    void add_buffers() {
        const PlanRequest& r = program_.request;
        const uint32_t panel_hidden = padded(s_.hidden, kPanelColumns);
        for (uint32_t rank = 0; rank < ranks(); ++rank) {
            uint32_t query = 0, mixed = 0, heads = 0, values = 0;
            for (uint32_t i = 0; i < s_.layers; ++i) {
                const AttentionShape& a = s_.attention(i);
                const AttentionPart part = attention_part(a, rank, ranks());
                query = std::max(query, part.heads.count() * a.head_dim);
                mixed = std::max(mixed, part.heads.count() * a.v_head_dim);
                heads = std::max(heads, part.heads.count());
                values = std::max(values, padded(a.v_head_dim, kUnitRows));
                buffer(Value::cache, rank, 1, part.kv_heads.count() * (a.head_dim + a.v_head_dim),
                       0, i);
            }
            const uint32_t chunks = chunks_max(r);
            const uint32_t vocab = share(s_.vocab, rank, ranks()).count();
            const uint32_t width = std::max(share(s_.dense_width, rank, ranks()).count(),
                                            share(s_.expert_width, rank, ranks()).count());
            const uint32_t gated_rows = r.rows * s_.experts_per_token;
            const uint32_t panel_width = padded(width, kPanelColumns);
            buffer(Value::residual, rank, r.rows, s_.hidden, 4ull * padded(s_.hidden, 16));
            buffer(Value::angles, rank, r.rows, s_.full.rotary_dims + s_.sliding.rotary_dims,
                   4ull * (s_.full.rotary_dims + s_.sliding.rotary_dims));
            buffer(Value::normed, rank, r.rows, s_.hidden, 4ull * panel_hidden);
            if (r.blocks != Blocks::none)
                buffer(Value::normed_blocks, rank, r.rows, 1,
                       uint64_t{block_bytes(r.blocks)} * (panel_hidden / kMxBlock));
            buffer(Value::query, rank, r.rows, query, 4ull * query);
            // Every query head's lane of each share of chunks; a chunk has its values, highest and
            // total.
            buffer(Value::parts, rank, r.rows, heads * program_.request.workers,
                   4ull * heads * chunks * (values + 2));
            buffer(Value::mixed, rank, r.rows, mixed, 4ull * padded(mixed, kPanelColumns));
            const uint64_t stream_bytes = 4ull * padded(s_.hidden, 16);
            for (const uint16_t partial : {kPartialOutput, kPartialDown, kPartialFuse}) {
                const uint32_t rows = partial == kPartialFuse ? r.context_rows() : r.rows;
                if (ranks() > 1)
                    buffer(Value::partial, rank, rows, s_.hidden, stream_bytes, partial);
            }
            buffer(Value::scores, rank, r.rows, s_.experts, 4ull * padded(s_.experts, 16));
            buffer(Value::routes, rank, 1, 1,
                   s_.experts > 0 ? route_bytes(r.rows, s_.experts_per_token, s_.experts) : 0);
            buffer(Value::taps, rank, r.rows, static_cast<uint32_t>(r.taps.size()), 0);
            if (r.draft) {
                const uint32_t columns = r.draft->taps * s_.hidden / ranks();
                buffer(Value::tapped, rank, r.draft->context_rows, columns,
                       4ull * padded(columns, kPanelColumns));
                buffer(Value::fused, rank, r.draft->context_rows, s_.hidden, stream_bytes);
                buffer(Value::context, rank, r.draft->context_rows, s_.hidden, 4ull * panel_hidden);
                buffer(Value::context_angles, rank, r.draft->context_rows,
                       s_.full.rotary_dims + s_.sliding.rotary_dims,
                       4ull * (s_.full.rotary_dims + s_.sliding.rotary_dims));
            }
            buffer(Value::gated, rank, gated_rows, width, 4ull * panel_width);
            if (r.blocks != Blocks::none)
                buffer(Value::gated_blocks, rank, gated_rows, width,
                       uint64_t{block_bytes(r.blocks)} * (panel_width / kMxBlock));
            buffer(Value::logits, rank, r.rows, vocab, 4ull * padded(vocab, 16));
        }
    }

    void buffer(Value value, uint32_t rank, uint32_t rows, uint32_t columns, uint64_t row_bytes,
                uint32_t layer = 0) {
        program_.buffers.push_back({value, static_cast<uint8_t>(rank), narrow(layer), rows, columns,
                                    padded64(row_bytes), 0});
    }

    static uint64_t padded64(uint64_t bytes) { return (bytes + 63) / 64 * 64; }
    static uint16_t narrow(uint32_t value) {
        CHECK(value <= UINT16_MAX);
        return static_cast<uint16_t>(value);
    }
    uint32_t ranks() const { return program_.request.ranks; }
    uint32_t workers() const { return program_.request.workers; }

    const Shape s_;
    Program program_;
    std::vector<uint64_t> load_, phase_load_;  // by worker: bytes so far, and in this phase
    uint32_t phase_begin_ = 0;
    std::vector<uint32_t> event_;  // by rank: of the phase before
};

}  // namespace

Program plan(const PlanRequest& request) {
    CHECK(!ranks_problem(request.shape, request.ranks));
    CHECK(request.workers > 0 && request.context > 0);
    CHECK(request.rows > 0 || request.draft);
    CHECK(!request.draft || (request.draft->context_rows > 0 && request.draft->taps > 0));
    return Planner(request).build();
}

}  // namespace tessera
