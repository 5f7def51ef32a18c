#include "plan/explain.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/memory.h"

namespace tessera {
namespace {

// What a phase of one layer amounts to.
struct Phase {
    Op op;
    uint16_t slot;  // of a norm: which; of an exchange: of what is fused, or 0; else 0
    uint32_t layer;
    uint32_t tiles = 0;
    uint64_t bytes = 0;  // of weights, on rank 0

    static bool alike(const Phase& a, const Phase& b) {
        return a.op == b.op && a.slot == b.slot && a.tiles == b.tiles && a.bytes == b.bytes;
    }
};

struct Kind {
    std::vector<Phase> phases;
    std::vector<uint32_t> layers;
};

bool is_fused(const Tile& t) {
    return t.op == Op::exchange && t.slot == kPartialFuse;
}

// One step's phases in order.
std::vector<Phase> phases(const Program& p) {
    std::vector<Phase> all;
    for (const Tile& t : p.tiles) {
        const uint16_t slot = t.op == Op::norm || is_fused(t) ? t.slot : uint16_t{0};
        const bool same = !all.empty() && all.back().op == t.op && all.back().slot == slot &&
                          all.back().layer == t.layer;
        if (!same) all.push_back({t.op, slot, t.layer});
        ++all.back().tiles;
        const WeightSpan span = weight_span(t);
        if (t.rank == 0 && span.source != Source::none)
            all.back().bytes +=
                span.units.count() * source_unit_bytes(p.request, span.source, t.layer);
    }
    // `down` reads an expert's units in every slot.
    for (Phase& phase : all)
        if (phase.op == Op::down) phase.bytes *= slot_count(p.request, phase.layer);
    return all;
}

// What comes before and after the layers stands apart from them.
std::vector<std::vector<Phase>> by_layer(const std::vector<Phase>& all) {
    const auto apart = [](const Phase& phase) {
        return phase.op == Op::embed || phase.op == Op::head || phase.op == Op::gather ||
               phase.op == Op::fuse || (phase.op == Op::exchange && phase.slot == kPartialFuse) ||
               (phase.op == Op::norm && (phase.slot == kNormFinal || phase.slot == kNormContext));
    };
    std::vector<std::vector<Phase>> layers;
    for (const Phase& phase : all) {
        if (layers.empty() || layers.back().back().layer != phase.layer ||
            apart(layers.back().back()) != apart(phase))
            layers.emplace_back();
        layers.back().push_back(phase);
    }
    return layers;
}

// "0, 2-5"
std::string ranges(const std::vector<uint32_t>& numbers) {
    std::string text;
    for (size_t i = 0, end = 0; i < numbers.size(); i = end) {
        for (end = i + 1; end < numbers.size() && numbers[end] == numbers[end - 1] + 1;) ++end;
        text += fmt::format("{}{}", text.empty() ? "" : ", ", numbers[i]);
        if (end > i + 1) text += fmt::format("-{}", numbers[end - 1]);
    }
    return text;
}

std::string phase_name(const Phase& phase) {
    if (phase.op != Op::norm) return std::string(op_name(phase.op));
    return phase.slot == kNormInput   ? "norm (input)"
           : phase.slot == kNormPost  ? "norm (post)"
           : phase.slot == kNormFinal ? "norm (final)"
                                      : "norm (context)";
}

}  // namespace

std::string explain(const Program& p) {
    const PlanRequest& r = p.request;
    std::string text;
    if (r.draft)
        text =
            fmt::format("drafter: takes in {} row{} of {} tapped layer{}{}\n",
                        r.draft->context_rows, r.draft->context_rows == 1 ? "" : "s", r.draft->taps,
                        r.draft->taps == 1 ? "" : "s", r.rows > 0 ? " and fills a block" : "");
    text += fmt::format(
        "program for {} row{}, {} rank{} of {} worker{}, context {}\n{} tiles, {} events, {} of "
        "buffers a rank\n\n  {:<14}{:>8}{:>12}\n",
        r.rows, r.rows == 1 ? "" : "s", r.ranks, r.ranks == 1 ? "" : "s", r.workers,
        r.workers == 1 ? "" : "s", r.context, p.tiles.size(), p.signals.size(),
        bytes_text(p.arena_bytes), "phase", "tiles", "weights");
    // Layers that look alike are told once.
    std::vector<Kind> kinds;
    for (const std::vector<Phase>& layer : by_layer(phases(p))) {
        auto found = std::ranges::find_if(kinds, [&](const Kind& kind) {
            return std::ranges::equal(kind.phases, layer, &Phase::alike);
        });
        if (found == kinds.end()) found = kinds.insert(found, {layer, {}});
        found->layers.push_back(layer.front().layer);
    }
    uint64_t total = 0;
    for (const Kind& kind : kinds) {
        text += fmt::format("layer{} {}\n", kind.layers.size() > 1 ? "s" : "", ranges(kind.layers));
        for (const Phase& phase : kind.phases) {
            text += fmt::format("  {:<14}{:>8}{:>12}\n", phase_name(phase), phase.tiles,
                                phase.bytes > 0 ? bytes_text(phase.bytes) : "-");
            total += phase.bytes * kind.layers.size();
        }
    }
    text += fmt::format("{:<14}{:>12}{:>8}{:>12}\n\n{:<14}{:>12}{:>12}\n", "all", "",
                        p.tiles.size(), bytes_text(total), "buffer", "rows", "bytes");
    for (const Buffer& b : p.buffers) {
        if (b.rank > 0 || b.bytes() == 0) continue;
        text += fmt::format("{:<14}{:>12}{:>12}  at {}\n", value_name(b.value), b.rows,
                            bytes_text(b.bytes()), b.offset);
    }
    return text;
}

std::string explain_tiles(const Program& p) {
    std::vector<uint32_t> worker_of(p.tiles.size());
    for (uint32_t w = 0; w < p.queues.size(); ++w)
        for (const uint32_t index : p.queues[w]) worker_of[index] = w;
    std::string text;
    for (uint32_t i = 0; i < p.tiles.size(); ++i) {
        const Tile& t = p.tiles[i];
        text += fmt::format("{} {} layer {} rank {} worker {}", i, op_name(t.op), t.layer, t.rank,
                            worker_of[i]);
        if (t.slot > 0) text += fmt::format(" slot {}", t.slot);
        if (t.op == Op::norm && t.part > 0) text += fmt::format(" tap {}", t.part - 1);
        if (t.shares > 1) text += fmt::format(" part {} of {}", t.part, t.shares);
        text += fmt::format(" [{}, {})", t.begin, t.end);
        if (t.wait != kNoEvent) text += fmt::format(" waits e{} >= {}", t.wait, t.count);
        if (t.done != kNoEvent) text += fmt::format(" signals e{}", t.done);
        text += '\n';
    }
    return text;
}

}  // namespace tessera
