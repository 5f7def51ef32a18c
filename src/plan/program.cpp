#include "plan/program.h"

#include <algorithm>

#include "base/check.h"
#include "model/traffic.h"
#include "tiles/kernels.h"

namespace tessera {
namespace {

// The `count` columns of the overlap of [begin, end) with a run that starts at `at`, counted from
// `base`.
Span overlap(Span span, uint32_t at, uint32_t count) {
    const uint32_t begin = std::max(span.begin, at), end = std::min(span.end, at + count);
    return begin < end ? Span{begin - at, end - at} : Span{};
}

Span units_to_rows(const Tile& tile, uint32_t rows) {
    return {tile.begin * kUnitRows, std::min(tile.end * kUnitRows, rows)};
}

// Collects what one tile touches.
class Touched {
  public:
    Touched(const Program& program, const Tile& tile) : program_(program), tile_(tile) {}

    void read(Value value, Span rows, Span columns) { add(value, rows, columns, false); }
    void write(Value value, Span rows, Span columns) { add(value, rows, columns, true); }

    void partial(uint32_t rank, uint32_t which, Span columns, bool write) {
        const Span all = which == kPartialFuse ? context_rows() : rows();
        list.push_back({find_buffer(program_, Value::partial, rank, which), all, columns, write});
    }

    // Sums go onto the buffer, or to the rank's partial where there are several.
    void sums(Value onto, uint32_t which, Span all, Span columns) {
        if (program_.request.ranks > 1) return partial(tile_.rank, which, columns, true);
        read(onto, all, columns);
        write(onto, all, columns);
    }

    Span rows() const { return {0, program_.request.rows}; }
    Span context_rows() const { return {0, program_.request.context_rows()}; }

    std::vector<Access> list;

  private:
    void add(Value value, Span rows, Span columns, bool write) {
        if (rows.count() == 0 || columns.count() == 0) return;
        const uint32_t layer = value == Value::cache ? tile_.layer : 0;
        list.push_back({find_buffer(program_, value, tile_.rank, layer), rows, columns, write});
    }

    const Program& program_;
    const Tile& tile_;
};

}  // namespace

std::string_view op_name(Op op) {
    switch (op) {
        case Op::embed:
            return "embed";
        case Op::norm:
            return "norm";
        case Op::qkv:
            return "qkv";
        case Op::attend:
            return "attend";
        case Op::merge:
            return "merge";
        case Op::output:
            return "output";
        case Op::exchange:
            return "exchange";
        case Op::router:
            return "router";
        case Op::route:
            return "route";
        case Op::gate_up:
            return "gate_up";
        case Op::down:
            return "down";
        case Op::head:
            return "head";
        case Op::gather:
            return "gather";
        case Op::fuse:
            return "fuse";
        case Op::query:
            return "query";
        case Op::keys:
            return "keys";
    }
    return "";
}

std::string_view value_name(Value value) {
    switch (value) {
        case Value::residual:
            return "residual";
        case Value::angles:
            return "angles";
        case Value::normed:
            return "normed";
        case Value::normed_blocks:
            return "normed_blocks";
        case Value::query:
            return "query";
        case Value::cache:
            return "cache";
        case Value::parts:
            return "parts";
        case Value::mixed:
            return "mixed";
        case Value::partial:
            return "partial";
        case Value::scores:
            return "scores";
        case Value::routes:
            return "routes";
        case Value::gated:
            return "gated";
        case Value::gated_blocks:
            return "gated_blocks";
        case Value::logits:
            return "logits";
        case Value::taps:
            return "taps";
        case Value::tapped:
            return "tapped";
        case Value::fused:
            return "fused";
        case Value::context:
            return "context";
        case Value::context_angles:
            return "context_angles";
    }
    return "";
}

bool is_context(const Buffer& buffer) {
    switch (buffer.value) {
        case Value::tapped:
        case Value::fused:
        case Value::context:
        case Value::context_angles:
            return true;
        case Value::partial:
            return buffer.layer == kPartialFuse;
        default:
            return false;
    }
}

uint32_t find_buffer(const Program& program, Value value, uint32_t rank, uint32_t layer) {
    for (uint32_t i = 0; i < program.buffers.size(); ++i) {
        const Buffer& b = program.buffers[i];
        if (b.value == value && b.rank == rank && b.layer == layer) return i;
    }
    CHECK(value != value);  // there is no such buffer
    return 0;
}

bool is_one_chunk(const PlanRequest& r, uint32_t layer) {
    const uint32_t window = r.shape.attention(layer).window;
    const uint32_t ahead = r.draft && r.rows > 0 ? r.rows - 1 : 0;
    return window > 0 && window + ahead <= kChunkKeys;
}

uint32_t head_units(const PlanRequest& r, uint32_t layer) {
    return r.shape.attention(layer).head_dim / kUnitRows;
}

uint32_t chunks_max(const PlanRequest& r) {
    return (r.context + kChunkKeys - 1) / kChunkKeys;
}

uint32_t chunk_shares(const PlanRequest& r, uint32_t layer) {
    if (is_one_chunk(r, layer)) return 1;
    const uint32_t kv = attention_part(r.shape.attention(layer), 0, r.ranks).kv_heads.count();
    return std::min((r.workers + kv - 1) / kv, chunks_max(r));
}

uint32_t slot_count(const PlanRequest& r, uint32_t layer) {
    if (!r.shape.is_moe[layer]) return 1;
    return std::min(r.shape.experts, r.rows * r.shape.experts_per_token);
}

Program truncated(const Program& program, uint32_t last) {
    Program part = program;
    part.tiles.resize(last + 1);
    std::ranges::fill(part.signals, 0u);
    for (std::vector<uint32_t>& queue : part.queues)
        std::erase_if(queue, [&](uint32_t index) { return index > last; });
    // Waits name tiles that come before, so all they need is there.
    for (const Tile& tile : part.tiles)
        if (tile.done != kNoEvent) ++part.signals[tile.done];
    return part;
}

// ------------------------------------------------------------------ weights

namespace {

// Rows and columns of the packed matrix on a rank.
struct Extent {
    uint32_t rows, columns;
    Format format;
};

Extent extent(const PlanRequest& r, Source source, uint32_t layer, uint32_t rank) {
    const Shape& s = r.shape;
    const AttentionShape& a = s.attention(layer);
    const AttentionPart part = attention_part(a, 0, r.ranks);
    const bool moe = s.is_moe[layer];
    const Linear inner = moe ? Linear::expert : Linear::dense;
    const uint32_t width = (moe ? s.expert_width : s.dense_width) / r.ranks;
    switch (source) {
        case Source::none:
            return {0, 0, Format::bf16};
        case Source::qkv:
            return {part.heads.count() * a.head_dim +
                        part.kv_heads.count() * (a.head_dim + a.v_head_dim),
                    s.hidden, stored_format(s, Linear::qkv, layer)};
        case Source::output:
            return {s.hidden, part.heads.count() * a.v_head_dim,
                    stored_format(s, Linear::output, layer)};
        case Source::router:
            return {s.experts, s.hidden, stored_format(s, Linear::router, layer)};
        case Source::gate_up:
            return {2 * padded(width, kUnitRows), s.hidden, stored_format(s, inner, layer)};
        case Source::down:
            return {s.hidden, width, stored_format(s, inner, layer)};
        case Source::head:
            return {share(s.vocab, rank, r.ranks).count(), s.hidden,
                    stored_format(s, Linear::head, layer)};
        case Source::fuse:
            return {s.hidden, r.draft->taps * s.hidden / r.ranks, Format::bf16};
        case Source::query:
            return {part.heads.count() * a.head_dim, s.hidden,
                    stored_format(s, Linear::qkv, layer)};
        case Source::keys:
            return {part.kv_heads.count() * (a.head_dim + a.v_head_dim), s.hidden,
                    stored_format(s, Linear::qkv, layer)};
    }
    return {};
}

}  // namespace

uint32_t source_units(const PlanRequest& r, Source source, uint32_t layer, uint32_t rank) {
    return (extent(r, source, layer, rank).rows + kUnitRows - 1) / kUnitRows;
}

uint64_t source_unit_bytes(const PlanRequest& r, Source source, uint32_t layer) {
    const Extent e = extent(r, source, layer, 0);
    return uint64_t{(e.columns + kPanelColumns - 1) / kPanelColumns} * panel_bytes(e.format);
}

WeightSpan weight_span(const Tile& tile) {
    switch (tile.op) {
        case Op::qkv:
            return {Source::qkv, {tile.begin, tile.end}};
        case Op::output:
            return {Source::output, {tile.begin, tile.end}};
        case Op::router:
            return {Source::router, {tile.begin, tile.end}};
        case Op::gate_up:
            return {Source::gate_up, {2 * tile.begin, 2 * tile.end}};
        case Op::down:
            return {Source::down, {tile.begin, tile.end}};
        case Op::head:
            return {Source::head, {tile.begin, tile.end}};
        case Op::fuse:
            return {Source::fuse, {tile.begin, tile.end}};
        case Op::query:
            return {Source::query, {tile.begin, tile.end}};
        case Op::keys:
            return {Source::keys, {tile.begin, tile.end}};
        default:
            return {};
    }
}

// ------------------------------------------------------------------ what tiles touch

std::vector<Access> accesses(const Program& program, const Tile& tile) {
    const PlanRequest& r = program.request;
    const Shape& s = r.shape;
    const AttentionShape& a = s.attention(tile.layer);
    const AttentionPart part = attention_part(a, tile.rank, r.ranks);
    const bool moe = s.is_moe[tile.layer];
    const Span all_hidden{0, s.hidden}, tile_rows{tile.begin, tile.end};
    const Span angles{0, s.full.rotary_dims + s.sliding.rotary_dims};
    const uint32_t k_rows = part.kv_heads.count() * a.head_dim;
    const uint32_t v_rows = part.kv_heads.count() * a.v_head_dim;
    Touched t(program, tile);
    const Span rows = t.rows();

    switch (tile.op) {
        case Op::embed:
            t.write(Value::residual, tile_rows, all_hidden);
            t.write(Value::angles, tile_rows, angles);
            break;
        case Op::norm:
            if (tile.slot == kNormContext) {
                t.read(Value::fused, tile_rows, all_hidden);
                t.write(Value::context, tile_rows, all_hidden);
                break;
            }
            t.read(Value::residual, tile_rows, all_hidden);
            if (tile.part > 0) t.write(Value::taps, tile_rows, {tile.part - 1u, tile.part});
            t.write(Value::normed, tile_rows, all_hidden);
            if (r.blocks != Blocks::none && tile.slot == kNormPost && moe)
                t.write(Value::normed_blocks, tile_rows, {0, 1});
            break;
        case Op::qkv: {
            const Span out{tile.begin * kUnitRows, tile.end * kUnitRows};
            const uint32_t q_rows = part.heads.count() * a.head_dim;
            const Span q = overlap(out, 0, q_rows);
            t.read(Value::normed, rows, all_hidden);
            t.read(Value::angles, rows, angles);
            t.write(Value::query, rows, q);
            t.write(Value::cache, {0, 1}, overlap(out, q_rows, k_rows + v_rows));
            break;
        }
        case Op::attend: {
            t.read(Value::query, rows, {tile.begin * a.head_dim, tile.end * a.head_dim});
            t.read(Value::cache, {0, 1}, {tile.slot * a.head_dim, (tile.slot + 1u) * a.head_dim});
            t.read(Value::cache, {0, 1},
                   {k_rows + tile.slot * a.v_head_dim, k_rows + (tile.slot + 1u) * a.v_head_dim});
            if (is_one_chunk(r, tile.layer)) {
                t.write(Value::mixed, rows, {tile.begin * a.v_head_dim, tile.end * a.v_head_dim});
                break;
            }
            for (uint32_t head = tile.begin; head < tile.end; ++head) {
                const uint32_t lane = head * r.workers + tile.part;
                t.write(Value::parts, rows, {lane, lane + 1});
            }
            break;
        }
        case Op::merge: {
            const uint32_t shares = chunk_shares(r, tile.layer);
            for (uint32_t head = tile.begin; head < tile.end; ++head)
                t.read(Value::parts, rows, {head * r.workers, head * r.workers + shares});
            t.write(Value::mixed, rows, {tile.begin * a.v_head_dim, tile.end * a.v_head_dim});
            break;
        }
        case Op::output:
        case Op::down: {
            const Span out = units_to_rows(tile, s.hidden);
            if (tile.op == Op::output) {
                t.read(Value::mixed, rows, {0, part.heads.count() * a.v_head_dim});
            } else {
                const uint32_t width = (moe ? s.expert_width : s.dense_width) / r.ranks;
                if (moe) t.read(Value::routes, {0, 1}, {0, 1});
                const Span gated{0, moe ? r.rows * s.experts_per_token : r.rows};
                t.read(Value::gated, gated, {0, width});
                if (moe && r.blocks != Blocks::none) t.read(Value::gated_blocks, gated, {0, width});
            }
            t.sums(Value::residual, tile.op == Op::output ? kPartialOutput : kPartialDown, rows,
                   out);
            break;
        }
        case Op::exchange: {
            const Span columns = units_to_rows(tile, s.hidden);
            for (uint32_t rank = 0; rank < r.ranks; ++rank)
                t.partial(rank, tile.slot, columns, false);
            const bool fuse = tile.slot == kPartialFuse;
            t.read(fuse ? Value::fused : Value::residual, fuse ? t.context_rows() : rows, columns);
            t.write(fuse ? Value::fused : Value::residual, fuse ? t.context_rows() : rows, columns);
            break;
        }
        case Op::router:
            t.read(Value::normed, rows, all_hidden);
            t.write(Value::scores, rows, units_to_rows(tile, s.experts));
            break;
        case Op::route:
            t.read(Value::scores, rows, {0, s.experts});
            t.write(Value::routes, {0, 1}, {0, 1});
            break;
        case Op::gate_up: {
            const uint32_t width = (moe ? s.expert_width : s.dense_width) / r.ranks;
            const Span out = units_to_rows(tile, width);
            if (moe) t.read(Value::routes, {0, 1}, {0, 1});
            t.read(Value::normed, rows, all_hidden);
            if (moe && r.blocks != Blocks::none) t.read(Value::normed_blocks, rows, {0, 1});
            // Which rows a slot serves is data: no two slots serve the same (row, choice), so the
            // slots of a phase cut the rows of `gated` among them. Here: evenly.
            const uint32_t slots = slot_count(r, tile.layer);
            const Span cut = share(moe ? r.rows * s.experts_per_token : r.rows, tile.slot, slots);
            t.write(Value::gated, cut, out);
            if (moe && r.blocks != Blocks::none) t.write(Value::gated_blocks, cut, out);
            break;
        }
        case Op::head: {
            const uint32_t vocab = share(s.vocab, tile.rank, r.ranks).count();
            t.read(Value::normed, rows, all_hidden);
            t.write(Value::logits, rows, units_to_rows(tile, vocab));
            break;
        }
        case Op::gather:
            t.write(Value::tapped, tile_rows, {0, r.draft->taps * s.hidden / r.ranks});
            t.write(Value::fused, tile_rows, all_hidden);
            t.write(Value::context_angles, tile_rows, angles);
            break;
        case Op::fuse:
            t.read(Value::tapped, t.context_rows(), {0, r.draft->taps * s.hidden / r.ranks});
            t.sums(Value::fused, kPartialFuse, t.context_rows(), units_to_rows(tile, s.hidden));
            break;
        case Op::query:
            t.read(Value::normed, rows, all_hidden);
            t.read(Value::angles, rows, angles);
            t.write(Value::query, rows, units_to_rows(tile, part.heads.count() * a.head_dim));
            break;
        case Op::keys:
            t.read(Value::normed, rows, all_hidden);
            t.read(Value::angles, rows, angles);
            t.read(Value::context, t.context_rows(), all_hidden);
            t.read(Value::context_angles, t.context_rows(), angles);
            t.write(Value::cache, {0, 1}, units_to_rows(tile, k_rows + v_rows));
            break;
    }
    return std::move(t.list);
}

}  // namespace tessera
