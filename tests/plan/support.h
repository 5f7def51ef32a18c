// Programs for the tests of plan, and a slow twin of check(): the same claims, each in the plainest
// way. Every pair of tiles is compared with every other, byte by byte where buffers share bytes,
// and "before" is a search through queues and events.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "plan/check.h"
#include "plan/program.h"

#include "support/toys.h"

namespace tessera::test {

// A dense layer that sees everything and a sliding layer of experts: every op but merge of a
// window.
inline Shape two_layers(const Json& changes = Json::object()) {
    Json config = {
        {"num_hidden_layers", 2}, {"hybrid_layer_pattern", {0, 1}}, {"moe_layer_freq", {0, 1}}};
    config.update(changes);
    return toy_shape(config);
}

inline PlanRequest request(const Shape& shape, uint32_t ranks, uint32_t workers, uint32_t rows,
                           Blocks blocks = Blocks::none, uint32_t context = 1200) {
    return {shape, ranks, workers, rows, context, blocks, {}, {}};
}

// The drafter of the four-layer toy, or of the toy with other taps: its block, or with no rows its
// context alone.
inline PlanRequest draft_request(const DrafterShape& drafter, uint32_t ranks, uint32_t workers,
                                 uint32_t rows, uint32_t context_rows, uint32_t context = 1200) {
    PlanRequest r =
        request(layers_of(drafter, toy_shape()), ranks, workers, rows, Blocks::none, context);
    r.draft = {.context_rows = context_rows, .taps = static_cast<uint32_t>(drafter.taps.size())};
    return r;
}

inline PlanRequest tapped_request(const Shape& shape, const std::vector<uint32_t>& taps,
                                  uint32_t ranks, uint32_t workers, uint32_t rows) {
    PlanRequest r = request(shape, ranks, workers, rows);
    r.taps = taps;
    return r;
}

inline std::string text(const Program& p, uint32_t index) {
    const Tile& t = p.tiles[index];
    return fmt::format("tile {} ({} of layer {}, rank {}, slot {}, {} to {})", index, op_name(t.op),
                       t.layer, t.rank, t.slot, t.begin, t.end);
}

// The spans of one phase on one rank cut [0, total) without gap or overlap.
inline void expect_cut(std::vector<Span> spans, uint32_t total, const std::string& what) {
    std::ranges::sort(spans, {}, &Span::begin);
    uint32_t at = 0;
    for (const Span& span : spans) {
        EXPECT_EQ(span.begin, at) << what;
        EXPECT_LT(span.begin, span.end) << what;
        at = span.end;
    }
    EXPECT_EQ(at, total) << what;
}

// Pieces of `multiple` that `count` needs.
inline uint32_t pieces(uint32_t count, uint32_t multiple) {
    return (count + multiple - 1) / multiple;
}

// before[b][a]: tile a has certainly ended when tile b begins. Empty if some tile never runs.
inline std::vector<std::vector<bool>> certain_order(const Program& p) {
    const size_t count = p.tiles.size();
    std::vector<std::vector<uint32_t>> signallers(p.signals.size());
    for (uint32_t i = 0; i < count; ++i)
        if (p.tiles[i].done != kNoEvent) signallers[p.tiles[i].done].push_back(i);
    std::vector<std::vector<bool>> before(count, std::vector<bool>(count));
    std::vector<size_t> next(p.queues.size());
    std::vector<uint32_t> signalled(p.signals.size());
    const auto after = [&](uint32_t later, uint32_t earlier) {
        before[later][earlier] = true;
        for (uint32_t i = 0; i < count; ++i)
            if (before[earlier][i]) before[later][i] = true;
    };
    size_t ran = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (size_t w = 0; w < p.queues.size(); ++w) {
            if (next[w] == p.queues[w].size()) continue;
            const uint32_t index = p.queues[w][next[w]];
            const Tile& t = p.tiles[index];
            if (t.wait != kNoEvent && signalled[t.wait] < t.count) continue;
            if (next[w] > 0) after(index, p.queues[w][next[w] - 1]);
            if (t.wait != kNoEvent && t.count == signallers[t.wait].size())
                for (const uint32_t other : signallers[t.wait]) after(index, other);
            if (t.done != kNoEvent) ++signalled[t.done];
            ++next[w];
            ++ran;
            moved = true;
        }
    }
    if (ran != count) before.clear();
    return before;
}

inline bool meet(Span a, Span b) {
    return a.begin < b.end && b.begin < a.end;
}

// Whether the two accesses touch the same bytes or places of one buffer, one of them writing.
inline bool conflict(const Program& p, const Access& a, const Access& b) {
    if (!a.write && !b.write) return false;
    if (a.buffer == b.buffer) return meet(a.rows, b.rows) && meet(a.columns, b.columns);
    const Buffer &x = p.buffers[a.buffer], &y = p.buffers[b.buffer];
    return x.rank == y.rank && x.bytes() > 0 && y.bytes() > 0 && x.offset < y.offset + y.bytes() &&
           y.offset < x.offset + x.bytes();
}

// What is wrong with the order of a program's tiles, if anything.
inline std::optional<std::string> slow_order_fault(const Program& p) {
    const auto before = certain_order(p);
    if (before.empty() && !p.tiles.empty()) return "some tile never runs";
    std::vector<std::vector<Access>> touched;
    for (const Tile& tile : p.tiles) touched.push_back(accesses(p, tile));
    for (uint32_t b = 0; b < p.tiles.size(); ++b) {
        for (uint32_t a = 0; a < b; ++a) {
            if (before[b][a]) continue;
            for (const Access& x : touched[a]) {
                for (const Access& y : touched[b]) {
                    if (conflict(p, x, y))
                        return fmt::format("{} and {} meet in {} and {}", text(p, a), text(p, b),
                                           value_name(p.buffers[x.buffer].value),
                                           value_name(p.buffers[y.buffer].value));
                }
            }
        }
    }
    return std::nullopt;
}

// What a step run tile after tile would read without having written it, or after other bytes came
// into its place.
inline std::optional<std::string> slow_content_fault(const Program& p) {
    std::vector<std::vector<bool>> written;  // by buffer: places
    for (const Buffer& b : p.buffers) written.emplace_back(size_t{b.rows} * b.columns);
    for (uint32_t i = 0; i < p.tiles.size(); ++i) {
        for (const Access& a : accesses(p, p.tiles[i])) {
            const Buffer& b = p.buffers[a.buffer];
            if (a.rows.end > b.rows || a.columns.end > b.columns)
                return fmt::format("{} leaves {}", text(p, i), value_name(b.value));
            if (!a.write && b.value == Value::cache) continue;
            for (uint32_t row = a.rows.begin; row < a.rows.end; ++row) {
                for (uint32_t column = a.columns.begin; column < a.columns.end; ++column) {
                    const size_t place = size_t{row} * b.columns + column;
                    if (a.write) {
                        written[a.buffer][place] = true;
                    } else if (!written[a.buffer][place]) {
                        return fmt::format("{} reads {} of {}, column {}", text(p, i), row,
                                           value_name(b.value), column);
                    }
                }
            }
            if (!a.write) continue;
            for (uint32_t other = 0; other < p.buffers.size(); ++other) {
                const Access whole{
                    other, {0, p.buffers[other].rows}, {0, p.buffers[other].columns}, false};
                if (other != a.buffer && conflict(p, a, whole))
                    written[other].assign(written[other].size(), false);
            }
        }
    }
    return std::nullopt;
}

inline std::optional<std::string> slow_fault(const Program& p) {
    if (auto fault = slow_order_fault(p)) return fault;
    return slow_content_fault(p);
}

// Which worker has each tile.
inline std::vector<uint32_t> workers_of(const Program& p) {
    std::vector<uint32_t> worker(p.tiles.size());
    for (uint32_t w = 0; w < p.queues.size(); ++w)
        for (const uint32_t index : p.queues[w]) worker[index] = w;
    return worker;
}

}  // namespace tessera::test
