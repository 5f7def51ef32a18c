#include "plan/check_network.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

namespace tessera {
namespace {

// Where a tile stands among those of its layer; equal where they do not look at each other.
uint32_t stage(const Tile& t) {
    switch (t.op) {
        case Op::embed:
        case Op::gather:
            return 0;
        case Op::fuse:
            return 1;
        case Op::norm:
            return t.slot == kNormPost ? 9 : t.slot == kNormFinal ? 15 : 3;
        case Op::qkv:
        case Op::query:
        case Op::keys:
            return 4;
        case Op::attend:
            return 5;
        case Op::merge:
            return 6;
        case Op::output:
            return 7;
        case Op::exchange:
            return t.slot == kPartialFuse ? 2 : t.slot == kPartialOutput ? 8 : 14;
        case Op::router:
            return 10;
        case Op::route:
            return 11;
        case Op::gate_up:
            return 12;
        case Op::down:
            return 13;
        case Op::head:
            return 16;
    }
    return 0;
}

// A sum that is read before it is whole, a norm of the stream before a layer has added to it:
// nothing but the order in which tiles are defined tells them from what is meant.
std::optional<std::string> check_order(const Program& p) {
    std::vector<uint32_t> last(p.request.ranks, kNoEvent);
    for (uint32_t i = 0; i < p.tiles.size(); ++i) {
        const Tile& t = p.tiles[i];
        if (last[t.rank] != kNoEvent) {
            const Tile& before = p.tiles[last[t.rank]];
            if (std::pair(uint32_t{before.layer}, stage(before)) >
                std::pair(uint32_t{t.layer}, stage(t)))
                return fmt::format("{} comes after {}", tile_text(p, i),
                                   tile_text(p, last[t.rank]));
        }
        last[t.rank] = i;
    }
    return std::nullopt;
}

// Work without weights. What a tile that is not there would have written may stand in its place
// from the layer before, so reads do not miss it.
struct PhaseKey {
    uint32_t layer, rank;
    Op op;
    uint32_t slot, part;  // of attention: kv head, and share of the chunks

    auto operator<=>(const PhaseKey&) const = default;
};

class Phases {
  public:
    explicit Phases(const Program& p) : r_(p.request) {
        for (const Tile& t : p.tiles) {
            if (weight_span(t).source != Source::none) continue;
            const uint32_t part = t.op == Op::attend ? t.part : 0;  // a norm's is its tap
            if (t.op == Op::attend && t.shares != chunk_shares(r_, t.layer))
                fault_ = fmt::format("layer {}, rank {}: chunks of keys in {} shares, expected {}",
                                     t.layer, t.rank, t.shares, chunk_shares(r_, t.layer));
            spans_[{t.layer, t.rank, t.op, t.slot, part}].push_back({t.begin, t.end});
        }
    }

    std::optional<std::string> fault() {
        const Shape& s = r_.shape;
        const Span rows{0, r_.rows}, context{0, r_.context_rows()};
        const Span units{0, (s.hidden + kUnitRows - 1) / kUnitRows};
        for (uint32_t rank = 0; rank < r_.ranks; ++rank) {
            rank_ = rank;
            if (r_.draft) {
                expect(0, Op::gather, context);
                if (r_.ranks > 1) expect(0, Op::exchange, units, kPartialFuse);
                expect(0, Op::norm, context, kNormContext);
            }
            if (r_.rows == 0) continue;
            expect(0, Op::embed, rows);
            for (uint32_t i = 0; i < s.layers; ++i) {
                expect(i, Op::norm, rows, kNormInput);
                expect(i, Op::norm, rows, kNormPost);
                attention(i);
                if (s.is_moe[i]) expect(i, Op::route, {0, 0});
                if (r_.ranks == 1) continue;
                expect(i, Op::exchange, units, kPartialOutput);
                expect(i, Op::exchange, units, kPartialDown);
            }
            expect(s.layers - 1, Op::norm, rows, kNormFinal);
        }
        if (!fault_ && spans_.size() != expected_)
            fault_ =
                fmt::format("{} phases without weights, expected {}", spans_.size(), expected_);
        return fault_;
    }

  private:
    void attention(uint32_t i) {
        const AttentionPart part = attention_part(r_.shape.attention(i), rank_, r_.ranks);
        const uint32_t group = part.group();
        for (uint32_t kv = 0; kv < part.kv_heads.count(); ++kv) {
            for (uint32_t share = 0; share < chunk_shares(r_, i); ++share)
                expect(i, Op::attend, {kv * group, (kv + 1) * group}, kv, share);
        }
        if (!is_one_chunk(r_, i)) expect(i, Op::merge, {0, part.heads.count()});
    }

    // That the phase's tiles cut `all` without gap or overlap.
    void expect(uint32_t layer, Op op, Span all, uint32_t slot = 0, uint32_t part = 0) {
        std::vector<Span>& spans = spans_[{layer, rank_, op, slot, part}];
        std::ranges::sort(spans, {}, &Span::begin);
        uint32_t at = all.begin;
        bool whole = !spans.empty();
        for (const Span& span : spans) {
            whole &= span.begin == at && span.end >= at;
            at = span.end;
        }
        ++expected_;
        if ((whole && at == all.end) || fault_) return;
        fault_ = fmt::format(
            "layer {}, rank {}: the tiles of {}, slot {}, part {} do not cut {} to "
            "{} without gap or overlap",
            layer, rank_, op_name(op), slot, part, all.begin, all.end);
    }

    const PlanRequest& r_;
    std::map<PhaseKey, std::vector<Span>> spans_;
    uint32_t rank_ = 0;
    size_t expected_ = 0;
    std::optional<std::string> fault_;
};

// Every row leaves every tap, once, on one rank as on all: the norm that reads the stream keeps it.
std::optional<std::string> check_taps(const Program& p) {
    const PlanRequest& r = p.request;
    std::map<std::pair<uint32_t, uint32_t>, uint32_t> rows;  // by rank and tap
    for (uint32_t i = 0; i < p.tiles.size(); ++i) {
        const Tile& t = p.tiles[i];
        if (t.op != Op::norm || t.part == 0) continue;
        const bool is_final = t.slot == kNormFinal;
        const uint32_t next = is_final ? r.shape.layers : t.layer;  // after layer next - 1
        if ((t.slot != kNormInput && !is_final) || next != r.taps[t.part - 1] + 1)
            return fmt::format("{} does not see the stream after layer {}, and keeps it",
                               tile_text(p, i), r.taps[t.part - 1]);
        rows[{t.rank, t.part - 1u}] += t.end - t.begin;
    }
    for (uint32_t rank = 0; rank < r.ranks; ++rank) {
        for (uint32_t tap = 0; tap < r.taps.size(); ++tap) {
            const uint32_t found = rows[{rank, tap}];
            if (found != r.rows)
                return fmt::format("rank {} keeps {} of {} rows of the stream after layer {}", rank,
                                   found, r.rows, r.taps[tap]);
        }
    }
    return std::nullopt;
}

// A drafter normalises queries and keys head by head: a tile that cut a head would take what lies
// beside its results for the rest.
std::optional<std::string> check_heads(const Program& p) {
    for (uint32_t i = 0; i < p.tiles.size(); ++i) {
        const Tile& t = p.tiles[i];
        if (t.op != Op::query && t.op != Op::keys) continue;
        const AttentionPart part =
            attention_part(p.request.shape.attention(t.layer), t.rank, p.request.ranks);
        const uint32_t head = head_units(p.request, t.layer);
        const uint32_t heads = t.op == Op::query ? part.heads.count() : part.kv_heads.count();
        for (const uint32_t edge : {t.begin, t.end}) {
            if (edge < heads * head && edge % head != 0)
                return fmt::format("{} cuts a head of {} units at unit {}", tile_text(p, i), head,
                                   edge);
        }
    }
    return std::nullopt;
}

}  // namespace

std::string tile_text(const Program& p, uint32_t index) {
    const Tile& t = p.tiles[index];
    return fmt::format("tile {} ({}, layer {}, rank {}, slot {}, {} to {})", index, op_name(t.op),
                       t.layer, t.rank, t.slot, t.begin, t.end);
}

std::optional<std::string> check_network(const Program& program) {
    if (auto fault = check_order(program)) return fault;
    if (auto fault = Phases(program).fault()) return fault;
    if (auto fault = check_heads(program)) return fault;
    return check_taps(program);
}

}  // namespace tessera
