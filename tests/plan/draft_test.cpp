// Programs of drafters, and of targets that keep taps for one: all pass the check and its slow
// twin, every phase is cut without gap, and what would draft garbage is refused by name.
#include <functional>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "plan/support.h"

#include "support/published.h"

namespace tessera {
namespace {

using test::draft_request;
using test::expect_cut;
using test::pieces;
using test::tapped_request;
using test::text;
using testing::HasSubstr;

// ------------------------------------------------------------------ any drafter

struct Named {
    const char* name;
    DrafterShape shape;
};

const std::vector<Named>& drafters() {
    static const std::vector<Named> all = {
        {"a window in one chunk", test::toy_drafter_shape()},
        {"a window that the block carries out of a chunk",
         test::toy_drafter_shape({{"dflash_config", {{"swa_window_size", 509}}}})},
        {"a window of several chunks",
         test::toy_drafter_shape({{"dflash_config", {{"swa_window_size", 1100}}}})},
        {"no window",
         test::toy_drafter_shape(
             {{"dflash_config", {{"use_swa", false}, {"attention_sink_bias", false}}}})},
        {"heads of one unit, values of no whole unit",
         test::toy_drafter_shape({{"head_dim", 16}, {"v_head_dim", 20}})},
        {"one layer, one tap",
         test::toy_drafter_shape(
             {{"num_hidden_layers", 1}, {"dflash_config", {{"target_layer_ids", {3}}}}})},
    };
    return all;
}

// Calls each(request) for every drafter on every machine.
template <typename Each>
void over_drafters(const std::vector<uint32_t>& workers, Each each) {
    for (const Named& named : drafters()) {
        for (const uint32_t ranks : {1u, 2u, 4u}) {
            ASSERT_EQ(drafter_ranks_problem(named.shape, ranks), std::nullopt) << named.name;
            for (const uint32_t w : workers) {
                for (const uint32_t rows : {8u, 0u}) {
                    for (const uint32_t context_rows : {8u, 64u}) {
                        SCOPED_TRACE(fmt::format("{}: {} ranks, {} workers, {} rows, {} of context",
                                                 named.name, ranks, w, rows, context_rows));
                        each(draft_request(named.shape, ranks, w, rows, context_rows));
                    }
                }
            }
        }
    }
}

TEST(DraftPlan, PassesTheCheck) {
    over_drafters({1, 2, 3, 8},
                  [](const PlanRequest& r) { EXPECT_EQ(check(plan(r)).value_or(""), ""); });
}

TEST(DraftPlan, PassesTheSlowTwinOfTheCheck) {
    over_drafters({1, 3}, [](const PlanRequest& r) {
        EXPECT_EQ(test::slow_fault(plan(r)).value_or(""), "");
    });
}

TEST(DraftPlan, OfThePublishedModelPasses) {
    const Shape pro = parse_shape(test::pro_fp4_config(), "pro");
    const DrafterShape drafter = parse_drafter_shape(test::pro_drafter_config(), pro, "drafter");
    for (const uint32_t ranks : kRankCounts) {
        PlanRequest r = draft_request(drafter, ranks, 16, 8, 8, 4096);
        r.shape = layers_of(drafter, pro);
        EXPECT_EQ(check(plan(r)).value_or(""), "") << ranks << " ranks";
        r.rows = 0;
        EXPECT_EQ(check(plan(r)).value_or(""), "") << ranks << " ranks, context";
    }
}

// ------------------------------------------------------------------ who does what

struct Phase {
    Op op;
    uint32_t layer, rank, slot, part;
    auto operator<=>(const Phase&) const = default;
};

// Every phase that a drafter must have and what its begin and end count to, from the shape alone.
std::map<Phase, uint32_t> expected_phases(const PlanRequest& r) {
    const Shape& s = r.shape;
    const uint32_t heads = s.full.heads / r.ranks, kv = std::max(1u, s.full.kv_heads / r.ranks);
    const uint32_t hidden = pieces(s.hidden, 16), last = s.layers - 1;
    const uint32_t window = s.is_sliding[0] ? s.full.window : 0;
    // Attention in one chunk of 512 keys has no parts; else the chunks of 1200 positions are dealt
    // out while there are more workers than kv heads.
    const bool one_chunk = window > 0 && window + 8 - 1 <= 512;
    const uint32_t shares = one_chunk ? 1 : std::min(pieces(r.workers, kv), 3u);
    std::map<Phase, uint32_t> all;
    for (uint32_t rank = 0; rank < r.ranks; ++rank) {
        const auto add = [&](Op op, uint32_t layer, uint32_t total, uint32_t slot = 0,
                             uint32_t part = 0) {
            all[{op, layer, rank, slot, part}] = total;
        };
        add(Op::gather, 0, r.draft->context_rows);
        add(Op::fuse, 0, hidden);
        if (r.ranks > 1) add(Op::exchange, 0, hidden, kPartialFuse);
        add(Op::norm, 0, r.draft->context_rows, kNormContext);
        for (uint32_t i = 0; i < s.layers; ++i) {
            add(Op::keys, i, pieces(kv * (s.full.head_dim + s.full.v_head_dim), 16));
            if (r.rows == 0) continue;
            add(Op::norm, i, r.rows, kNormInput);
            add(Op::query, i, heads * s.full.head_dim / 16);
            for (uint32_t part = 0; part < shares; ++part) add(Op::attend, i, heads, 0, part);
            if (!one_chunk) add(Op::merge, i, heads);
            add(Op::output, i, hidden);
            add(Op::norm, i, r.rows, kNormPost);
            add(Op::gate_up, i, s.dense_width / r.ranks / 16);
            add(Op::down, i, hidden);
            if (r.ranks == 1) continue;
            add(Op::exchange, i, hidden, kPartialOutput);
            add(Op::exchange, i, hidden, kPartialDown);
        }
        if (r.rows == 0) continue;
        add(Op::embed, 0, r.rows);
        add(Op::norm, last, r.rows, kNormFinal);
        add(Op::head, last, pieces(share(s.vocab, rank, r.ranks).count(), 16));
    }
    return all;
}

TEST(DraftPlan, EveryPhaseIsCutWithoutGapOrOverlap) {
    over_drafters({1, 2, 3, 8}, [](const PlanRequest& r) {
        std::map<Phase, std::vector<Span>> found;
        for (const Tile& t : plan(r).tiles) {
            const uint32_t slot = t.op == Op::attend ? 0 : t.slot;
            found[{t.op, t.layer, t.rank, slot, t.part}].push_back({t.begin, t.end});
        }
        const std::map<Phase, uint32_t> expected = expected_phases(r);
        for (const auto& [phase, total] : expected) {
            const std::string what =
                fmt::format("{} of layer {}, rank {}, slot {}, part {}", op_name(phase.op),
                            phase.layer, phase.rank, phase.slot, phase.part);
            expect_cut(found[phase], total, what);
        }
        EXPECT_EQ(found.size(), expected.size()) << "phases that no drafter has";
    });
}

TEST(DraftPlan, NoTileCutsAHead) {
    over_drafters({1, 2, 3, 8}, [](const PlanRequest& r) {
        const Program p = plan(r);
        for (uint32_t i = 0; i < p.tiles.size(); ++i) {
            const Tile& t = p.tiles[i];
            const uint32_t kv_heads = std::max(1u, r.shape.full.kv_heads / r.ranks);
            // Behind the keys come values, which are not normalised.
            const bool in_heads =
                t.op == Op::query ||
                (t.op == Op::keys && t.begin * 16 < kv_heads * r.shape.full.head_dim);
            EXPECT_TRUE(!in_heads || t.begin * 16 % r.shape.full.head_dim == 0) << text(p, i);
        }
    });
}

// ------------------------------------------------------------------ what the target keeps

const std::vector<uint32_t> kTapped[] = {{0}, {3}, {0, 2, 3}, {0, 1, 2, 3}};

TEST(TapPlan, PassesTheCheckAndKeepsEveryTapOfEveryRowOnce) {
    const Shape shape = test::toy_shape();
    for (const std::vector<uint32_t>& taps : kTapped) {
        for (const uint32_t ranks : {1u, 2u, 4u}) {
            for (const uint32_t workers : {1u, 2u, 3u, 8u}) {
                for (const uint32_t rows : {1u, 8u, 64u}) {
                    SCOPED_TRACE(fmt::format("{} taps, {} ranks, {} workers, {} rows", taps.size(),
                                             ranks, workers, rows));
                    const Program p = plan(tapped_request(shape, taps, ranks, workers, rows));
                    EXPECT_EQ(check(p).value_or(""), "");
                    std::map<std::pair<uint32_t, uint32_t>, std::vector<Span>> kept;
                    for (const Tile& t : p.tiles) {
                        if (t.op != Op::norm || t.part == 0) continue;
                        kept[{t.rank, t.part - 1u}].push_back({t.begin, t.end});
                        // The stream after a layer is what the next one, or the head, begins with.
                        const uint32_t after = taps[t.part - 1u];
                        EXPECT_EQ(t.slot, after + 1 < shape.layers ? kNormInput : kNormFinal);
                        EXPECT_EQ(t.layer, std::min(after + 1, shape.layers - 1));
                    }
                    EXPECT_EQ(kept.size(), ranks * taps.size());
                    for (const auto& [key, spans] : kept)
                        expect_cut(spans, rows,
                                   fmt::format("tap {} on rank {}", key.second, key.first));
                }
            }
        }
    }
}

TEST(TapPlan, KeepingCostsNoTileAndNoMemory) {
    const Shape shape = test::toy_shape();
    for (const uint32_t rows : {1u, 8u}) {
        const Program without = plan(test::request(shape, 2, 3, rows));
        Program with = plan(tapped_request(shape, {0, 2, 3}, 2, 3, rows));
        for (Tile& t : with.tiles)
            if (t.op == Op::norm) t.part = 0;
        EXPECT_EQ(with.tiles, without.tiles);
        EXPECT_EQ(with.queues, without.queues);
        EXPECT_EQ(with.arena_bytes, without.arena_bytes);
    }
}

// ------------------------------------------------------------------ harms

uint32_t find_tile(const Program& p, const std::function<bool(const Tile&)>& is) {
    const auto found = std::ranges::find_if(p.tiles, is);
    EXPECT_NE(found, p.tiles.end());
    return static_cast<uint32_t>(found - p.tiles.begin());
}

bool is_context_norm(const Tile& t) {
    return t.op == Op::norm && t.slot == kNormContext;
}

// As if the tile had never been planned: the worker's tile before it signals in its place, if that
// is of the same phase; else one signal less is waited for.
Program without_tile(const Program& program, uint32_t gone) {
    Program p = program;
    const Tile tile = p.tiles[gone];
    bool handed_on = tile.done == kNoEvent;
    for (std::vector<uint32_t>& queue : p.queues) {
        const auto at = std::ranges::find(queue, gone);
        if (at == queue.end()) continue;
        Tile* const before = at == queue.begin() ? nullptr : &p.tiles[*(at - 1)];
        if (!handed_on && before != nullptr && before->wait == tile.wait) {
            before->done = tile.done;
            handed_on = true;
        }
        queue.erase(at);
    }
    if (!handed_on) {
        --p.signals[tile.done];
        for (Tile& t : p.tiles)
            if (t.wait == tile.done) --t.count;
    }
    p.tiles.erase(p.tiles.begin() + gone);
    for (std::vector<uint32_t>& queue : p.queues)
        for (uint32_t& index : queue) index -= index > gone ? 1 : 0;
    return p;
}

struct Harm {
    const char* what;
    std::function<void(Program&)> harm;
    const char* words;
};

void expect_refused(const Program& program, const std::vector<Harm>& harms) {
    ASSERT_EQ(check(program).value_or(""), "");
    for (const Harm& harm : harms) {
        Program harmed = program;
        harm.harm(harmed);
        EXPECT_THAT(check(harmed).value_or("accepted"), HasSubstr(harm.words)) << harm.what;
    }
}

TEST(DraftCheck, RefusesATapThatIsLostOrAnothers) {
    const auto keeps = [](const Tile& t, uint32_t part) {
        return t.op == Op::norm && t.part == part;
    };
    const std::vector<Harm> harms = {
        {"a norm that loses its tap",
         [&](Program& p) { p.tiles[find_tile(p, [&](auto& t) { return keeps(t, 2); })].part = 0; },
         "rows of the stream after layer 2"},
        {"a norm that keeps another's, once more",
         [&](Program& p) { p.tiles[find_tile(p, [&](auto& t) { return keeps(t, 2); })].part = 1; },
         "does not see the stream after layer 0"},
        {"two taps that changed places: each is there once",
         [&](Program& p) {
             for (Tile& t : p.tiles) {
                 if (t.op == Op::norm && t.part > 1) t.part = t.part == 2 ? 3 : 2;
             }
         },
         "does not see the stream after layer"},
        {"the stream between attention and experts",
         [&](Program& p) {
             for (Tile& t : p.tiles) {
                 const bool next = t.op == Op::norm && t.layer == 3 && t.slot != kNormFinal;
                 if (next) t.part = t.slot == kNormPost ? 2 : 0;
             }
         },
         "does not see the stream after layer 2"},
        {"a tap beyond the last",
         [&](Program& p) { p.tiles[find_tile(p, [&](auto& t) { return keeps(t, 3); })].part = 4; },
         "goes beyond buffer taps"},
        {"a tile that keeps a row of its neighbour's",
         [&](Program& p) { ++p.tiles[find_tile(p, [&](auto& t) { return keeps(t, 1); })].end; },
         "before tile"},
    };
    expect_refused(plan(tapped_request(test::toy_shape(), {0, 2, 3}, 1, 2, 4)), harms);
    expect_refused(plan(tapped_request(test::toy_shape(), {0, 2, 3}, 2, 2, 4)), harms);
}

// Those without weights too: what they would have written stands there from the layer before, or is
// zero.
TEST(DraftCheck, RefusesAProgramWithoutOneOfItsTiles) {
    std::vector<std::pair<std::string, Program>> programs;
    for (const uint32_t ranks : {1u, 2u}) {
        for (const uint32_t rows : {8u, 0u}) {
            programs.emplace_back(
                fmt::format("{} ranks, {} rows", ranks, rows),
                plan(draft_request(test::toy_drafter_shape(), ranks, 2, rows, 8)));
        }
        programs.emplace_back(fmt::format("target, {} ranks", ranks),
                              plan(tapped_request(test::toy_shape(), {0, 2, 3}, ranks, 2, 4)));
    }
    for (const auto& [name, program] : programs) {
        for (uint32_t i = 0; i < program.tiles.size(); ++i)
            EXPECT_TRUE(check(without_tile(program, i)).has_value())
                << name << ": accepted without " << text(program, i);
    }
}

Tile& first(Program& p, Op op) {
    return p.tiles[find_tile(p, [&](const Tile& t) { return t.op == op; })];
}

// Two workers' tiles of one phase meet one unit later than they did.
void move_the_cut(Program& p, Op op) {
    Tile& tile = first(p, op);
    for (Tile& t : p.tiles) {
        const bool same = t.op == op && t.layer == tile.layer && t.rank == tile.rank;
        if (same && t.begin == tile.end) ++t.begin;
    }
    ++tile.end;
}

TEST(DraftCheck, RefusesWhatWouldDraftGarbage) {
    const std::vector<Harm> harms = {
        {"a lost keys tile",
         [](Program& p) {
             const uint32_t gone = find_tile(p, [](const Tile& t) { return t.op == Op::keys; });
             p = without_tile(p, gone);
         },
         "of a matrix"},
        {"the last keys one unit short",
         [](Program& p) {
             const uint32_t units = source_units(p.request, Source::keys, 0);
             --p.tiles[find_tile(p, [&](const Tile& t) {
                    return t.op == Op::keys && t.layer == 0 && t.end == units;
                })].end;
         },
         "units of a matrix are read"},
        {"a fuse tile that waits for nobody",
         [](Program& p) {
             first(p, Op::fuse).wait = kNoEvent;
             first(p, Op::fuse).count = 0;
         },
         "may read before tile"},
        {"a fuse tile that waits for one gather less",
         [](Program& p) { --first(p, Op::fuse).count; }, "may read before tile"},
        {"a context norm that does not wait for what is fused",
         [](Program& p) {
             const Tile fuse = first(p, Op::fuse);
             Tile& norm = p.tiles[find_tile(p, is_context_norm)];
             norm.wait = fuse.wait;
             norm.count = fuse.count;
         },
         "may read before tile"},
    };
    for (const uint32_t rows : {8u, 0u})
        expect_refused(plan(draft_request(test::toy_drafter_shape(), 1, 2, rows, 8)), harms);
}

TEST(DraftCheck, RefusesATileThatCutsAHead) {
    const char* const words = "cuts a head of 2 units at unit";
    for (const uint32_t ranks : {1u, 2u})
        expect_refused(plan(draft_request(test::toy_drafter_shape(), ranks, 2, 8, 8)),
                       {{"queries", [](Program& p) { move_the_cut(p, Op::query); }, words}});
    for (const uint32_t rows : {8u, 0u})
        expect_refused(plan(draft_request(test::toy_drafter_shape(), 1, 4, rows, 8)),
                       {{"keys", [](Program& p) { move_the_cut(p, Op::keys); }, words}});
    // Values are not normalised: two tiles may share a head of them.
    Program values = plan(draft_request(test::toy_drafter_shape(), 1, 2, 8, 8));
    move_the_cut(values, Op::keys);
    EXPECT_EQ(check(values).value_or(""), "");
}

// One worker, whose queue keeps every order, and memory enough: only the definition is wrong. No
// read is of what nobody has written, since sums begin as zeros.
TEST(DraftCheck, RefusesAContextThatIsNormalisedBeforeItIsFused) {
    for (const uint32_t rows : {8u, 0u}) {
        Program p = plan(draft_request(test::toy_drafter_shape(), 1, 1, rows, 8));
        const uint32_t fuse = find_tile(p, [](const Tile& t) { return t.op == Op::fuse; });
        const uint32_t norm = find_tile(p, is_context_norm);
        ASSERT_EQ(norm, fuse + 1);
        Buffer& context = p.buffers[find_buffer(p, Value::context, 0)];
        context.offset = p.arena_bytes;
        p.arena_bytes += context.bytes();
        ASSERT_EQ(check(p).value_or(""), "");
        std::swap(p.tiles[fuse], p.tiles[norm]);
        std::swap(p.tiles[fuse].wait, p.tiles[norm].wait);
        std::swap(p.tiles[fuse].count, p.tiles[norm].count);
        std::swap(p.tiles[fuse].done, p.tiles[norm].done);
        EXPECT_THAT(check(p).value_or("accepted"), HasSubstr("comes after tile"));
    }
}

TEST(DraftCheck, RefusesWhatRanksWouldAddUpWrongly) {
    const auto fused = [](const Tile& t) { return t.op == Op::exchange && t.slot == kPartialFuse; };
    const std::vector<Harm> harms = {
        {"what is fused from the partial of attention",
         [&](Program& p) { p.tiles[find_tile(p, fused)].slot = kPartialOutput; },
         "that nobody has written"},
        {"what is fused from the partial of the feed-forward",
         [&](Program& p) { p.tiles[find_tile(p, fused)].slot = kPartialDown; },
         "that nobody has written"},
        {"attention from the partial of what is fused",
         [&](Program& p) {
             p.tiles[find_tile(p, [](const Tile& t) {
                  return t.op == Op::exchange && t.slot == kPartialOutput;
              })].slot = kPartialFuse;
         },
         "that nobody has written"},
        {"an exchange that does not wait for all ranks",
         [&](Program& p) { --p.tiles[find_tile(p, fused)].count; }, "may read before tile"},
        {"a context norm that does not wait for the exchange",
         [&](Program& p) {
             const Tile exchange = p.tiles[find_tile(p, fused)];
             for (Tile& t : p.tiles) {
                 if (!is_context_norm(t)) continue;
                 t.wait = exchange.wait;
                 t.count = exchange.count;
             }
         },
         "may read before tile"},
    };
    expect_refused(plan(draft_request(test::toy_drafter_shape(), 2, 2, 8, 8)), harms);
    expect_refused(plan(draft_request(test::toy_drafter_shape(), 4, 1, 8, 8)),
                   {harms.begin(), harms.begin() + 4});
}

}  // namespace
}  // namespace tessera
