#include "plan/check.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "plan/check_network.h"

namespace tessera {
namespace {

// ------------------------------------------------------------------ it is a program at all

std::optional<std::string> check_form(const Program& p) {
    std::vector<uint32_t> times(p.tiles.size());
    std::vector<uint32_t> signals(p.signals.size());
    if (p.queues.size() != p.workers())
        return fmt::format("{} queues for {} workers", p.queues.size(), p.workers());
    for (uint32_t worker = 0; worker < p.queues.size(); ++worker) {
        for (const uint32_t index : p.queues[worker]) {
            if (index >= p.tiles.size())
                return fmt::format("worker {} has tile {} of {}", worker, index, p.tiles.size());
            ++times[index];
            const Tile& t = p.tiles[index];
            if (t.rank != worker / p.request.workers)
                return fmt::format("{} is queued on rank {}", tile_text(p, index),
                                   worker / p.request.workers);
            if (t.done != kNoEvent && t.done >= signals.size())
                return fmt::format("{} signals event {} of {}", tile_text(p, index), t.done,
                                   signals.size());
            if (t.wait != kNoEvent && t.wait >= signals.size())
                return fmt::format("{} waits for event {} of {}", tile_text(p, index), t.wait,
                                   signals.size());
            if (t.done != kNoEvent) ++signals[t.done];
        }
    }
    for (const Buffer& buffer : p.buffers) {
        if (buffer.offset > p.arena_bytes || buffer.bytes() > p.arena_bytes - buffer.offset)
            return fmt::format("buffer {} of rank {} ends beyond the arena of {} bytes",
                               value_name(buffer.value), buffer.rank, p.arena_bytes);
    }
    for (uint32_t i = 0; i < times.size(); ++i)
        if (times[i] != 1) return fmt::format("{} is queued {} times", tile_text(p, i), times[i]);
    for (uint32_t e = 0; e < signals.size(); ++e) {
        if (signals[e] != p.signals[e])
            return fmt::format("event {} is signalled {} times, expected {}", e, signals[e],
                               p.signals[e]);
    }
    return std::nullopt;
}

// ------------------------------------------------------------------ it ends, and in which order

// clock[tile][worker]: how many tiles of that worker's queue have certainly ended before the tile
// begins. Waiting for fewer signals than an event gets says nothing about any one of them.
class Order {
  public:
    explicit Order(const Program& p) : p_(p), workers_(p.workers()) {
        place_.resize(p.tiles.size());
        for (uint32_t w = 0; w < workers_; ++w)
            for (uint32_t i = 0; i < p.queues[w].size(); ++i) place_[p.queues[w][i]] = {w, i};
        clock_.resize(p.tiles.size() * workers_);
        run();
    }

    // The first tile that no schedule reaches.
    std::optional<uint32_t> stuck() const { return stuck_; }

    bool before(uint32_t a, uint32_t b) const {
        const Place& at = place_[a];
        if (at.worker == place_[b].worker) return at.index < place_[b].index;
        return clock_[b * workers_ + at.worker] > at.index;
    }

  private:
    struct Place {
        uint32_t worker, index;
    };

    // Events only count up, so the order in which ready tiles run does not change which become
    // ready: one schedule stands for all.
    void run() {
        std::vector<uint32_t> next(workers_), count(p_.signals.size());
        std::vector<uint32_t> event_clock(p_.signals.size() * workers_);
        std::vector<uint32_t> clock(workers_ * workers_);
        for (bool moved = true; moved;) {
            moved = false;
            for (uint32_t w = 0; w < workers_; ++w) {
                const std::vector<uint32_t>& queue = p_.queues[w];
                uint32_t* const mine = &clock[w * workers_];
                for (; next[w] < queue.size(); ++next[w], moved = true) {
                    const Tile& t = p_.tiles[queue[next[w]]];
                    if (t.wait != kNoEvent && count[t.wait] < t.count) break;
                    if (t.wait != kNoEvent && t.count == p_.signals[t.wait]) {
                        for (uint32_t other = 0; other < workers_; ++other)
                            mine[other] =
                                std::max(mine[other], event_clock[t.wait * workers_ + other]);
                    }
                    std::copy_n(mine, workers_, &clock_[queue[next[w]] * workers_]);
                    mine[w] = next[w] + 1;
                    if (t.done == kNoEvent) continue;
                    ++count[t.done];
                    for (uint32_t other = 0; other < workers_; ++other) {
                        uint32_t& seen = event_clock[t.done * workers_ + other];
                        seen = std::max(seen, mine[other]);
                    }
                }
            }
        }
        for (uint32_t w = 0; w < workers_ && !stuck_; ++w)
            if (next[w] < p_.queues[w].size()) stuck_ = p_.queues[w][next[w]];
    }

    const Program& p_;
    uint32_t workers_;
    std::vector<Place> place_;
    std::vector<uint32_t> clock_;
    std::optional<uint32_t> stuck_;
};

// ------------------------------------------------------------------ it computes what it says

struct Rectangle {
    Span rows, columns;

    uint64_t area() const { return uint64_t{rows.count()} * columns.count(); }
};

Rectangle overlap(const Rectangle& a, const Rectangle& b) {
    const auto cut = [](Span x, Span y) {
        const uint32_t begin = std::max(x.begin, y.begin), end = std::min(x.end, y.end);
        return begin < end ? Span{begin, end} : Span{};
    };
    return {cut(a.rows, b.rows), cut(a.columns, b.columns)};
}

// What is left of `a` without `b`, as at most four rectangles.
std::vector<Rectangle> without(const Rectangle& a, const Rectangle& b) {
    const Rectangle o = overlap(a, b);
    if (o.area() == 0) return {a};
    std::vector<Rectangle> rest;
    const auto keep = [&](Span rows, Span columns) {
        if (rows.count() > 0 && columns.count() > 0) rest.push_back({rows, columns});
    };
    keep({a.rows.begin, o.rows.begin}, a.columns);
    keep({o.rows.end, a.rows.end}, a.columns);
    keep(o.rows, {a.columns.begin, o.columns.begin});
    keep(o.rows, {o.columns.end, a.columns.end});
    return rest;
}

// Who last wrote, and who has read since, each part of a buffer.
class History {
  public:
    History(const Program& p, const Order& order) : p_(p), order_(order) {
        written_.resize(p.buffers.size());
        readers_.resize(p.buffers.size());
        share_.resize(p.buffers.size());
        for (uint32_t a = 0; a < p.buffers.size(); ++a) {
            for (uint32_t b = 0; b < p.buffers.size(); ++b)
                if (a != b && share_bytes(p.buffers[a], p.buffers[b])) share_[a].push_back(b);
        }
    }

    std::optional<std::string> take(uint32_t tile) {
        for (const Access& access : accesses(p_, p_.tiles[tile])) {
            const Buffer& buffer = p_.buffers[access.buffer];
            if (access.rows.end > buffer.rows || access.columns.end > buffer.columns)
                return fmt::format(
                    "{} goes beyond buffer {}: rows to {} of {}, columns to {} of {}",
                    tile_text(p_, tile), value_name(buffer.value), access.rows.end, buffer.rows,
                    access.columns.end, buffer.columns);
            if (auto fault = access.write ? write(tile, access) : read(tile, access)) return fault;
        }
        return std::nullopt;
    }

  private:
    struct Entry {
        Rectangle where;
        uint32_t tile;
        bool gone = false;  // its bytes belong to another buffer now; the order still matters
    };

    static bool share_bytes(const Buffer& a, const Buffer& b) {
        return a.rank == b.rank && a.bytes() > 0 && b.bytes() > 0 &&
               a.offset < b.offset + b.bytes() && b.offset < a.offset + a.bytes();
    }

    std::optional<std::string> ordered(uint32_t earlier, uint32_t later, uint32_t buffer,
                                       const char* what) const {
        if (earlier == later || order_.before(earlier, later)) return std::nullopt;
        return fmt::format("{} {} before {} has ended, in buffer {} of rank {}",
                           tile_text(p_, later), what, tile_text(p_, earlier),
                           value_name(p_.buffers[buffer].value), p_.buffers[buffer].rank);
    }

    std::optional<std::string> read(uint32_t tile, const Access& access) {
        const Rectangle where{access.rows, access.columns};
        uint64_t covered = 0;
        for (const Entry& entry : written_[access.buffer]) {
            const uint64_t area = overlap(entry.where, where).area();
            if (!entry.gone) covered += area;
            if (area == 0) continue;
            if (auto fault = ordered(entry.tile, tile, access.buffer, "may read")) return fault;
        }
        // What a cache lacks was written by earlier steps.
        if (covered != where.area() && p_.buffers[access.buffer].value != Value::cache)
            return fmt::format("{} reads {} of {} places of buffer {} that nobody has written",
                               tile_text(p_, tile), where.area() - covered, where.area(),
                               value_name(p_.buffers[access.buffer].value));
        readers_[access.buffer].push_back({where, tile});
        return std::nullopt;
    }

    std::optional<std::string> write(uint32_t tile, const Access& access) {
        const Rectangle where{access.rows, access.columns};
        std::vector<Entry> rest;
        for (auto* list : {&written_[access.buffer], &readers_[access.buffer]}) {
            rest.clear();
            for (const Entry& entry : *list) {
                if (overlap(entry.where, where).area() == 0) {
                    rest.push_back(entry);
                    continue;
                }
                if (auto fault = ordered(entry.tile, tile, access.buffer, "may overwrite"))
                    return fault;
                for (const Rectangle& left : without(entry.where, where))
                    rest.push_back({left, entry.tile, entry.gone});
            }
            *list = rest;
        }
        written_[access.buffer].push_back({where, tile});
        // Bytes shared with another buffer: all it held is gone, and nobody may still be at it when
        // any tile writes here.
        for (const uint32_t other : share_[access.buffer]) {
            for (auto* list : {&written_[other], &readers_[other]}) {
                for (Entry& entry : *list) {
                    if (auto fault = ordered(entry.tile, tile, other, "may overwrite the bytes"))
                        return fault;
                    entry.gone = true;
                }
            }
        }
        return std::nullopt;
    }

    const Program& p_;
    const Order& order_;
    std::vector<std::vector<Entry>> written_, readers_;  // by buffer
    std::vector<std::vector<uint32_t>> share_;           // by buffer: those with bytes in common
};

// ------------------------------------------------------------------ weights, once and evenly

// A phase's reads of one matrix: of one slot, where there are slots.
struct MatrixKey {
    uint32_t layer, rank;
    Source source;
    uint32_t slot;

    auto operator<=>(const MatrixKey&) const = default;
};

std::optional<std::string> check_weights_once(const Program& p) {
    std::map<MatrixKey, std::vector<Span>> spans;
    for (const Tile& t : p.tiles) {
        const WeightSpan span = weight_span(t);
        if (span.source == Source::none) continue;
        const uint32_t slot = span.source == Source::gate_up ? t.slot : 0;
        spans[{t.layer, t.rank, span.source, slot}].push_back(span.units);
    }
    size_t expected = 0;
    const auto expect = [&](MatrixKey key) -> std::optional<std::string> {
        std::vector<Span>& all = spans[key];
        std::ranges::sort(all, {}, &Span::begin);
        const uint32_t units = source_units(p.request, key.source, key.layer, key.rank);
        uint32_t at = 0;
        ++expected;
        for (const Span& span : all) {
            if (span.begin != at || span.end <= span.begin)
                return fmt::format("layer {}, rank {}: units {} to {} of a matrix follow unit {}",
                                   key.layer, key.rank, span.begin, span.end, at);
            at = span.end;
        }
        if (at == units) return std::nullopt;
        return fmt::format("layer {}, rank {}: {} of {} units of a matrix are read", key.layer,
                           key.rank, at, units);
    };
    const Shape& s = p.request.shape;
    const bool draft = p.request.draft.has_value();
    for (uint32_t rank = 0; rank < p.request.ranks; ++rank) {
        if (draft)
            if (auto fault = expect({0, rank, Source::fuse, 0})) return fault;
        for (uint32_t i = 0; i < s.layers; ++i) {
            if (draft)
                if (auto fault = expect({i, rank, Source::keys, 0})) return fault;
            if (p.request.rows == 0) continue;  // context is taken in, and no more
            for (const Source source :
                 {draft ? Source::query : Source::qkv, Source::output, Source::down})
                if (auto fault = expect({i, rank, source, 0})) return fault;
            if (s.is_moe[i])
                if (auto fault = expect({i, rank, Source::router, 0})) return fault;
            for (uint32_t slot = 0; slot < slot_count(p.request, i); ++slot)
                if (auto fault = expect({i, rank, Source::gate_up, slot})) return fault;
        }
        if (p.request.rows == 0) continue;
        if (auto fault = expect({s.layers - 1, rank, Source::head, 0})) return fault;
    }
    if (spans.size() != expected)
        return fmt::format("{} matrices are read, expected {}", spans.size(), expected);
    return std::nullopt;
}

// Bytes by worker in one phase, and the largest piece that could not be cut.
struct Load {
    std::vector<double> bytes;
    double granule = 0;
};

std::optional<std::string> uneven(const Load& load, std::string_view where) {
    double sum = 0, most = 0;
    for (const double bytes : load.bytes) {
        sum += bytes;
        most = std::max(most, bytes);
    }
    const double mean = sum / static_cast<double>(load.bytes.size());
    if (most <= std::max(kBalanceMax * mean, mean + load.granule + 0.5)) return std::nullopt;
    return fmt::format("{}: a worker reads {:.0f} bytes of weights, the mean is {:.0f}", where,
                       most, mean);
}

// Units that the planner does not cut apart.
uint32_t granule_units(const PlanRequest& r, Source source, uint32_t layer) {
    if (source == Source::gate_up) return 4;
    if (source == Source::query || source == Source::keys) return head_units(r, layer);
    return 1;
}

std::optional<std::string> check_balance(const Program& p) {
    const PlanRequest& r = p.request;
    std::vector<uint32_t> worker_of(p.tiles.size());
    for (uint32_t w = 0; w < p.queues.size(); ++w)
        for (const uint32_t index : p.queues[w]) worker_of[index] = w % r.workers;
    // (layer, rank, source) -> slot -> load
    std::map<MatrixKey, Load> phases;
    for (uint32_t i = 0; i < p.tiles.size(); ++i) {
        const Tile& t = p.tiles[i];
        const WeightSpan span = weight_span(t);
        if (span.source == Source::none) continue;
        const double unit = static_cast<double>(source_unit_bytes(r, span.source, t.layer));
        Load& load =
            phases[{t.layer, t.rank, span.source, span.source == Source::gate_up ? t.slot : 0u}];
        load.bytes.resize(r.workers);
        load.bytes[worker_of[i]] += unit * span.units.count();
        load.granule = granule_units(r, span.source, t.layer) * unit;
    }
    Load live;  // of the slots so far: every number of live ones is some prefix
    std::vector<Load> whole(r.ranks, {std::vector<double>(r.workers), 0});
    std::map<Source, double> granules;
    for (const auto& [key, load] : phases) {
        if (key.slot == 0) live = {std::vector<double>(r.workers), load.granule};
        for (uint32_t w = 0; w < r.workers; ++w) {
            live.bytes[w] += load.bytes[w];
            whole[key.rank].bytes[w] += load.bytes[w];
        }
        const std::string where =
            fmt::format("layer {}, rank {}, {} live slots", key.layer, key.rank, key.slot + 1);
        if (auto fault = uneven(live, where)) return fault;
        granules[key.source] = std::max(granules[key.source], load.granule);
    }
    for (Load& load : whole) {
        for (const auto& [source, granule] : granules) load.granule += granule;
        if (auto fault = uneven(load, "the whole program")) return fault;
    }
    return std::nullopt;
}

}  // namespace

std::optional<std::string> check(const Program& program) {
    if (auto fault = check_form(program)) return fault;
    const Order order(program);
    if (const auto stuck = order.stuck())
        return fmt::format("{} is never reached: event {} does not get {} signals",
                           tile_text(program, *stuck), program.tiles[*stuck].wait,
                           program.tiles[*stuck].count);
    History history(program, order);
    for (uint32_t i = 0; i < program.tiles.size(); ++i)
        if (auto fault = history.take(i)) return fault;
    if (auto fault = check_weights_once(program)) return fault;
    if (auto fault = check_network(program)) return fault;
    return check_balance(program);
}

}  // namespace tessera
