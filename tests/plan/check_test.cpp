// The check proves something because it can fail: every program here is a sound one with one harm
// done to it. A harm is refused with the words of its kind, or the slow twin (plan/support.h),
// which compares every pair of tiles, must agree that it is none: two tiles that touch nothing in
// common, with every signal still after all that it stands for.
#include "plan/check.h"

#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "plan/support.h"

namespace tessera {
namespace {

using test::draft_request;
using test::request;
using test::tapped_request;
using test::text;
using testing::AnyOf;
using testing::HasSubstr;

std::string said(const Program& p) {
    return check(p).value_or("accepted");
}

// Small, and different: one rank and several, merged and whole attention, blocks, dead workers;
// targets that keep taps, and what drafters do with them.
const std::vector<std::pair<const char*, Program>>& programs() {
    static const std::vector<std::pair<const char*, Program>> all = [] {
        std::vector<std::pair<const char*, Program>> made;
        const Shape two = test::two_layers();
        made.emplace_back("one row, two workers", plan(request(two, 1, 2, 1)));
        made.emplace_back("two rows, three workers", plan(request(two, 1, 3, 2)));
        made.emplace_back("one row, twenty workers", plan(request(two, 1, 20, 1)));
        made.emplace_back("two ranks", plan(request(two, 2, 2, 2)));
        made.emplace_back("eight ranks of one", plan(request(two, 8, 1, 1)));
        made.emplace_back("blocks", plan(request(two, 1, 2, 2, Blocks::int16)));
        made.emplace_back("four layers",
                          plan(request(test::toy_shape({{"sliding_window", 600}}), 2, 1, 1)));
        made.emplace_back("taps", plan(tapped_request(two, {0, 1}, 2, 2, 2)));
        const DrafterShape drafter = test::toy_drafter_shape();
        const DrafterShape merged =
            test::toy_drafter_shape({{"dflash_config", {{"swa_window_size", 1100}}}});
        made.emplace_back("a drafted block", plan(draft_request(drafter, 1, 3, 8, 5)));
        made.emplace_back("a drafted block, two ranks", plan(draft_request(merged, 2, 2, 4, 8)));
        made.emplace_back("a drafter's context", plan(draft_request(drafter, 1, 2, 0, 8)));
        made.emplace_back("a drafter's context, four ranks",
                          plan(draft_request(merged, 4, 2, 0, 8)));
        return made;
    }();
    return all;
}

// How many harms of a kind were refused, and how many were none.
struct Tally {
    uint32_t refused = 0, harmless = 0;

    // `words`: of the refusal.
    template <typename Matcher>
    void add(const Program& harmed, const std::string& what, const Matcher& words) {
        const std::string answer = said(harmed);
        if (answer != "accepted") {
            ++refused;
            EXPECT_THAT(answer, words) << what;
            return;
        }
        ++harmless;
        EXPECT_EQ(test::slow_fault(harmed).value_or(""), "") << "accepted, but: " << what;
    }
};

TEST(Check, AcceptsWhatTheseHarmsStartFrom) {
    for (const auto& [name, program] : programs()) {
        EXPECT_EQ(said(program), "accepted") << name;
        EXPECT_EQ(test::slow_fault(program).value_or(""), "") << name;
    }
}

// ------------------------------------------------------------------------------- form

TEST(Check, RefusesATileThatIsInNoQueue) {
    for (const auto& [name, program] : programs()) {
        SCOPED_TRACE(name);
        for (size_t w = 0; w < program.queues.size(); ++w) {
            for (size_t i = 0; i < program.queues[w].size(); ++i) {
                Program harmed = program;
                const uint32_t index = harmed.queues[w][i];
                harmed.queues[w].erase(harmed.queues[w].begin() + static_cast<ptrdiff_t>(i));
                EXPECT_THAT(said(harmed), AllOf(HasSubstr(fmt::format("tile {} (", index)),
                                                HasSubstr("is queued 0 times")));
            }
        }
    }
}

struct Harm {
    const char* what;
    std::function<void(Program&)> harm;
    const char* words;
};

TEST(Check, RefusesWhatIsNoProgram) {
    const Program program = plan(request(test::two_layers(), 2, 2, 1));
    for (const Harm& harm : std::vector<Harm>{
             {"a tile twice", [](Program& p) { p.queues[0].push_back(p.queues[0].back()); },
              "is queued 2 times"},
             {"a tile of another rank",
              [](Program& p) {
                  p.queues[2].push_back(p.queues[0].back());
                  p.queues[0].pop_back();
              },
              "is queued on rank 1"},
             {"a tile that is not there", [](Program& p) { p.queues[3].push_back(9999); },
              "worker 3 has tile 9999 of"},
             {"a worker too many", [](Program& p) { p.queues.emplace_back(); },
              "5 queues for 4 workers"},
             {"a worker too few", [](Program& p) { p.queues.pop_back(); },
              "3 queues for 4 workers"},
             {"no workers", [](Program& p) { p.queues.clear(); }, "0 queues for 4 workers"},
             {"a signal of no event", [](Program& p) { p.tiles[0].done = 9999; },
              "signals event 9999 of"},
             {"waiting for no event", [](Program& p) { p.tiles[0].wait = 9999; },
              "waits for event 9999 of"},
             {"a signal more than was said", [](Program& p) { ++p.signals[3]; },
              "event 3 is signalled"},
             {"a signal less than was said", [](Program& p) { --p.signals[3]; },
              "event 3 is signalled"},
             {"an event less", [](Program& p) { p.signals.pop_back(); }, "signals event"}}) {
        Program harmed = program;
        harm.harm(harmed);
        EXPECT_THAT(said(harmed), HasSubstr(harm.words)) << harm.what;
    }
}

// ------------------------------------------------------------------------------- order

// Every pair of neighbours in every queue. What remains accepted is two tiles that wait for the
// same (of two slots' experts, of two kv heads, of a drafter's block and its context) after which
// nothing of another worker waits for the first alone.
TEST(Check, RefusesSwappedNeighboursUnlessNothingDependsOnThem) {
    for (const auto& [name, program] : programs()) {
        SCOPED_TRACE(name);
        Tally tally;
        for (size_t w = 0; w < program.queues.size(); ++w) {
            for (size_t i = 0; i + 1 < program.queues[w].size(); ++i) {
                Program harmed = program;
                std::swap(harmed.queues[w][i], harmed.queues[w][i + 1]);
                const Tile& a = program.tiles[program.queues[w][i]];
                const Tile& b = program.tiles[program.queues[w][i + 1]];
                tally.add(harmed, text(program, program.queues[w][i]) + " and the next",
                          AnyOf(HasSubstr("is never reached"), HasSubstr("before tile")));
                if (said(harmed) == "accepted") {
                    EXPECT_EQ(a.wait, b.wait) << text(program, program.queues[w][i]);
                }
            }
        }
        EXPECT_GT(tally.refused, 0u);
    }
}

TEST(Check, RefusesAWaitForMoreSignalsThanCome) {
    for (const auto& [name, program] : programs()) {
        SCOPED_TRACE(name);
        for (uint32_t i = 0; i < program.tiles.size(); ++i) {
            if (program.tiles[i].wait == kNoEvent) continue;
            Program harmed = program;
            ++harmed.tiles[i].count;
            EXPECT_THAT(said(harmed), HasSubstr("is never reached: event")) << text(program, i);
        }
    }
}

TEST(Check, RefusesAWaitForAnEventThatOnlyLaterTilesSignal) {
    const Program& program = programs().front().second;
    for (uint32_t i = 0; i + 1 < program.tiles.size(); ++i) {
        if (program.tiles[i].done == kNoEvent) continue;
        Program harmed = program;
        harmed.tiles[i].wait = program.tiles[i].done;
        harmed.tiles[i].count = program.signals[program.tiles[i].done];
        EXPECT_THAT(said(harmed), HasSubstr("is never reached")) << text(program, i);
    }
}

// One signal less than the phase before gives. Harmless where the worker has waited in full for an
// earlier tile of the phase, or where the worker that may be late has nothing to do with it.
TEST(Check, RefusesAWaitForTooFewSignalsUnlessNothingDependsOnIt) {
    uint32_t refused = 0;
    for (const auto& [name, program] : programs()) {
        SCOPED_TRACE(name);
        Tally tally;
        for (uint32_t i = 0; i < program.tiles.size(); ++i) {
            if (program.tiles[i].wait == kNoEvent) continue;
            Program harmed = program;
            --harmed.tiles[i].count;
            tally.add(harmed, text(program, i),
                      AnyOf(HasSubstr("may read before tile"), HasSubstr("may overwrite")));
        }
        refused += tally.refused;
    }
    EXPECT_GT(refused, 300u);
}

// No wait at all, for a whole phase's tiles at once.
TEST(Check, RefusesAPhaseThatDoesNotWait) {
    for (const auto& [name, program] : programs()) {
        SCOPED_TRACE(name);
        Tally tally;
        for (uint32_t event = 0; event < program.signals.size(); ++event) {
            Program harmed = program;
            bool any = false;
            for (Tile& tile : harmed.tiles) {
                if (tile.wait != event) continue;
                tile.wait = kNoEvent;
                tile.count = 0;
                any = true;
            }
            if (any)
                tally.add(harmed, fmt::format("event {}", event),
                          AnyOf(HasSubstr("may read before tile"), HasSubstr("may overwrite")));
        }
        // A worker alone on its rank needs to wait for other ranks only.
        EXPECT_GT(tally.refused,
                  program.request.workers > 1 ? program.signals.size() / 2 : size_t{0});
    }
}

TEST(Check, RefusesADroppedSignal) {
    for (const auto& [name, program] : programs()) {
        SCOPED_TRACE(name);
        Tally tally;
        for (uint32_t i = 0; i < program.tiles.size(); ++i) {
            const uint32_t event = program.tiles[i].done;
            if (event == kNoEvent) continue;
            Program harmed = program;
            harmed.tiles[i].done = kNoEvent;
            EXPECT_THAT(said(harmed), HasSubstr(fmt::format("event {} is signalled {} times, "
                                                            "expected {}",
                                                            event, program.signals[event] - 1,
                                                            program.signals[event])));
            // Even where all agree on the lower number.
            --harmed.signals[event];
            for (Tile& tile : harmed.tiles)
                if (tile.wait == event) --tile.count;
            tally.add(harmed, text(program, i),
                      AnyOf(HasSubstr("may read before tile"), HasSubstr("may overwrite")));
        }
    }
}

// A signal that comes from the tile before the last of its phase says that the last is done: a lie.
TEST(Check, RefusesASignalThatComesTooEarly) {
    uint32_t refused = 0;
    for (const auto& [name, program] : programs()) {
        SCOPED_TRACE(name);
        Tally tally;
        for (const auto& queue : program.queues) {
            for (size_t i = 1; i < queue.size(); ++i) {
                const Tile &a = program.tiles[queue[i - 1]], &b = program.tiles[queue[i]];
                if (a.op != b.op || a.layer != b.layer || b.done == kNoEvent) continue;
                Program harmed = program;
                std::swap(harmed.tiles[queue[i - 1]].done, harmed.tiles[queue[i]].done);
                tally.add(harmed, text(program, queue[i]),
                          AnyOf(HasSubstr("may read before tile"), HasSubstr("may overwrite")));
            }
        }
        refused += tally.refused;
    }
    EXPECT_GT(refused, 10u);
}

// ------------------------------------------------------------------------------- the network

// Sound by every order and every place: what a tile that is not there, or is another's, would have
// written stands there from the layer before.
TEST(Check, RefusesWhatIsNotTheNetwork) {
    const Program program =
        plan(request(test::toy_shape({{"sliding_window", 600}}), 2, 4, 2, Blocks::int16));
    const auto each = [](Program& p, Op op, uint16_t slot, const auto& change) {
        for (Tile& t : p.tiles)
            if (t.op == op && t.slot == slot && t.layer == 2) change(t);
    };
    for (const Harm& harm : std::vector<Harm>{
             {"norms of one row",
              [&](Program& p) {
                  each(p, Op::norm, kNormInput, [](Tile& t) { t.begin = t.end = 1; });
              },
              "the tiles of norm, slot 0, part 0 do not cut 0 to 2"},
             {"no exchange of attention",
              [&](Program& p) {
                  each(p, Op::exchange, kPartialOutput, [](Tile& t) { t.end = t.begin; });
              },
              "the tiles of exchange, slot 0"},
             {"input norms that call themselves post norms",
              [&](Program& p) {
                  each(p, Op::norm, kNormInput, [](Tile& t) { t.slot = kNormPost; });
              },
              "comes after tile"},
             {"queries of one kv head with the keys of another",
              [&](Program& p) {
                  for (Tile& t : p.tiles) {
                      if (t.op == Op::attend && t.layer == 2) t.slot = 1 - t.slot;
                  }
              },
              "the tiles of attend"},
             {"chunks dealt out to fewer than there are",
              [](Program& p) {
                  for (Tile& t : p.tiles) {
                      if (t.op == Op::attend) t.shares += 1;
                  }
              },
              "chunks of keys in"}}) {
        Program harmed = program;
        harm.harm(harmed);
        EXPECT_THAT(said(harmed), HasSubstr(harm.words)) << harm.what;
    }
}

// ------------------------------------------------------------------------------- memory

// Every buffer onto every other of its rank.
TEST(Check, RefusesBuffersThatMeetWhileBothLive) {
    for (const auto& [name, program] : programs()) {
        SCOPED_TRACE(name);
        Tally tally;
        for (uint32_t a = 0; a < program.buffers.size(); ++a) {
            for (uint32_t b = 0; b < program.buffers.size(); ++b) {
                const Buffer &x = program.buffers[a], &y = program.buffers[b];
                if (a == b || x.rank != y.rank || x.bytes() == 0 || y.bytes() == 0) continue;
                Program harmed = program;
                harmed.buffers[a].offset = y.offset;
                harmed.arena_bytes = std::max(harmed.arena_bytes, y.offset + x.bytes());
                tally.add(harmed,
                          fmt::format("{} onto {}", value_name(x.value), value_name(y.value)),
                          AnyOf(HasSubstr("that nobody has written"),
                                HasSubstr("may overwrite the bytes")));
            }
        }
        EXPECT_GT(tally.refused, tally.harmless);
    }
}

TEST(Check, RefusesTheStreamOverAnything) {
    for (const auto& [name, program] : programs()) {
        if (program.request.rows == 0) continue;  // there is no stream
        for (uint32_t i = 0; i < program.buffers.size(); ++i) {
            const Buffer& b = program.buffers[i];
            if (b.value == Value::residual || b.bytes() == 0) continue;
            if (b.value == Value::gated_blocks || b.value == Value::logits) continue;  // see above
            Program harmed = program;
            harmed.buffers[i].offset =
                program.buffers[find_buffer(program, Value::residual, b.rank)].offset;
            harmed.arena_bytes = std::max(harmed.arena_bytes, harmed.buffers[i].offset + b.bytes());
            if (said(harmed) != "accepted") continue;
            // A buffer that no tile of this program touches.
            for (const Tile& tile : program.tiles) {
                for (const Access& access : accesses(program, tile))
                    EXPECT_NE(access.buffer, i) << name << ": " << value_name(b.value);
            }
        }
    }
}

TEST(Check, RefusesAnAccessBeyondItsBuffer) {
    for (const auto& [name, program] : programs()) {
        SCOPED_TRACE(name);
        // What is really touched of each buffer: the last row and the last column of it.
        for (uint32_t i = 0; i < program.buffers.size(); ++i) {
            uint32_t rows = 0, columns = 0;
            for (const Tile& tile : program.tiles) {
                for (const Access& access : accesses(program, tile)) {
                    if (access.buffer != i) continue;
                    rows = std::max(rows, access.rows.end);
                    columns = std::max(columns, access.columns.end);
                }
            }
            if (rows == 0) continue;
            Program harmed = program;
            harmed.buffers[i].rows = rows - 1;
            const std::string words =
                fmt::format("beyond buffer {}: rows to", value_name(program.buffers[i].value));
            EXPECT_THAT(said(harmed), HasSubstr(words));
            harmed = program;
            harmed.buffers[i].columns = columns - 1;
            EXPECT_THAT(said(harmed), HasSubstr(words));
            EXPECT_THAT(said(harmed),
                        HasSubstr(fmt::format("columns to {} of {}", columns, columns - 1)));
        }
    }
}

TEST(Check, RefusesARowMoreThanThereAre) {
    for (const auto& [name, program] : programs()) {
        for (uint32_t i = 0; i < program.tiles.size(); ++i) {
            if (program.tiles[i].op != Op::norm && program.tiles[i].op != Op::embed) continue;
            Program harmed = program;
            const bool of_context = program.tiles[i].slot == kNormContext;
            harmed.tiles[i].end =
                1 + (of_context ? program.request.context_rows() : program.request.rows);
            EXPECT_THAT(said(harmed), AnyOf(HasSubstr("goes beyond buffer"),
                                            // or it meets the next worker's row before
                                            HasSubstr("may overwrite"), HasSubstr("may read")))
                << name << ": " << text(program, i);
        }
    }
}

// ------------------------------------------------------------------------------- weights

bool reads_weights(const Program& p, uint32_t tile) {
    return weight_span(p.tiles[tile]).source != Source::none;
}

TEST(Check, RefusesUnitsThatAreSkippedOrReadTwice) {
    for (const auto& [name, program] : programs()) {
        SCOPED_TRACE(name);
        uint32_t by_units = 0;
        for (uint32_t i = 0; i < program.tiles.size(); ++i) {
            if (!reads_weights(program, i)) continue;
            for (const auto& [begin, end] :
                 {std::pair{1, 1}, {-1, -1}, {1, 0}, {0, -1}, {0, 1}, {-1, 0}}) {
                Program harmed = program;
                Tile& tile = harmed.tiles[i];
                if (static_cast<int>(tile.begin) + begin < 0) continue;
                tile.begin += static_cast<uint32_t>(begin);
                tile.end += static_cast<uint32_t>(end);
                const std::string answer = said(harmed);
                EXPECT_THAT(answer,
                            AnyOf(HasSubstr("of a matrix"), HasSubstr("that nobody has written"),
                                  HasSubstr("may overwrite"), HasSubstr("may read"),
                                  HasSubstr("goes beyond buffer")))
                    << text(program, i) << ", moved by " << begin << " and " << end;
                if (answer.find("of a matrix") != answer.npos) ++by_units;
            }
        }
        EXPECT_GT(by_units, 0u);
    }
}

// A copy behind the original, in the same queue: no order is broken, only the weights come twice.
TEST(Check, RefusesATileThatReadsItsWeightsAgain) {
    for (const auto& [name, program] : programs()) {
        SCOPED_TRACE(name);
        for (uint32_t i = 0; i < program.tiles.size(); ++i) {
            if (!reads_weights(program, i)) continue;
            Program harmed = program;
            harmed.tiles.insert(harmed.tiles.begin() + i, program.tiles[i]);
            harmed.tiles[i].done = kNoEvent;
            for (auto& queue : harmed.queues) {
                for (uint32_t& index : queue)
                    if (index >= i) ++index;
                const auto at = std::ranges::find(queue, i + 1);
                if (at != queue.end()) queue.insert(at, i);
            }
            EXPECT_THAT(said(harmed), HasSubstr("of a matrix follow unit")) << text(program, i);
        }
    }
}

// ------------------------------------------------------------------------------- balance

// All of one worker's tiles to another of its rank, in their order: sound but for the balance.
// (With very many workers, all of one's can be less than a granule in every phase.)
TEST(Check, RefusesAWorkerThatDoesAnothersWork) {
    for (const auto& [name, program] : programs()) {
        SCOPED_TRACE(name);
        const uint32_t workers = program.request.workers;
        if (workers > 3) continue;
        for (uint32_t from = 0; from < program.queues.size(); ++from) {
            for (uint32_t to = 0; to < program.queues.size(); ++to) {
                if (from == to || from / workers != to / workers) continue;
                Program harmed = program;
                auto& queue = harmed.queues[to];
                queue.insert(queue.end(), program.queues[from].begin(), program.queues[from].end());
                std::ranges::sort(queue);
                harmed.queues[from].clear();
                EXPECT_EQ(test::slow_order_fault(harmed).value_or(""), "");
                EXPECT_THAT(said(harmed), AllOf(HasSubstr("a worker reads"),
                                                HasSubstr("bytes of weights, the mean is")))
                    << from << " to " << to;
            }
        }
    }
}

// A span of several granules to a worker that has its own is above the bound for any number of live
// slots; a single granule more is what cannot be avoided.
TEST(Check, RefusesOneSpanTooManyInAPhase) {
    const Program program = plan(request(test::toy_shape({{"hidden_size", 640}}), 1, 2, 2));
    const auto worker = test::workers_of(program);
    std::map<Op, uint32_t> refused;
    for (uint32_t i = 0; i < program.tiles.size(); ++i) {
        const Tile& t = program.tiles[i];
        const WeightSpan span = weight_span(t);
        if (span.source == Source::none || span.units.count() < 8) continue;
        if (t.op == Op::gate_up && t.done != kNoEvent) continue;  // would signal too early there
        Program harmed = program;
        std::erase(harmed.queues[worker[i]], i);
        auto& queue = harmed.queues[1 - worker[i]];
        queue.push_back(i);
        std::ranges::sort(queue);
        EXPECT_THAT(said(harmed), HasSubstr("a worker reads")) << text(program, i);
        ++refused[t.op];
    }
    for (const Op op : {Op::qkv, Op::output, Op::gate_up, Op::down}) EXPECT_GT(refused[op], 0u);
}

// ------------------------------------------------------------------------------- faults once found

// Harms that the check once accepted.

// The first tile of a phase that writes over another buffer's bytes made the check forget who was
// still reading there, before the phase's other tiles were held against them. Here `mixed` lies
// over `query`, as the planner puts it: a merge tile that needs only its own worker's parts, and
// waits for one signal less than all, writes where the other worker's attend tile may still be
// reading.
TEST(Check, EveryTileThatWritesOverOtherBytesWaitsForTheirReaders) {
    const Shape shape = test::two_layers({{"hidden_size", 192}, {"sliding_window", 600}});
    uint32_t harmful = 0;
    for (const uint32_t rows : {1u, 2u}) {
        const Program program = plan(request(shape, 2, 2, rows));
        for (uint32_t i = 0; i < program.tiles.size(); ++i) {
            if (program.tiles[i].op != Op::merge) continue;
            Program harmed = program;
            --harmed.tiles[i].count;
            const auto fault = test::slow_order_fault(harmed);
            if (!fault) continue;
            ++harmful;
            EXPECT_NE(said(harmed), "accepted") << text(program, i) << ": " << *fault;
        }
    }
    EXPECT_GT(harmful, 0u);
}

TEST(Check, EveryBufferLiesInTheArena) {
    const Program& program = programs().front().second;
    for (uint32_t i = 0; i < program.buffers.size(); ++i) {
        if (program.buffers[i].bytes() == 0) continue;
        Program harmed = program;
        harmed.buffers[i].offset = program.arena_bytes;
        EXPECT_NE(said(harmed), "accepted") << value_name(program.buffers[i].value);
    }
    Program harmed = program;
    harmed.arena_bytes -= 1;
    EXPECT_NE(said(harmed), "accepted") << "an arena smaller than its buffers";
}

// A copy of a head tile that calls itself another layer's reads the head's units a second time.
TEST(Check, WeightsThatNobodyExpectsAreNotRead) {
    for (const auto& [name, program] : programs()) {
        for (uint32_t i = 0; i < program.tiles.size(); ++i) {
            if (program.tiles[i].op != Op::head) continue;
            Program harmed = program;
            harmed.tiles.insert(harmed.tiles.begin() + i, program.tiles[i]);
            harmed.tiles[i].done = kNoEvent;
            harmed.tiles[i].layer = 0;
            harmed.tiles[i].end = harmed.tiles[i].begin + 1;
            for (auto& queue : harmed.queues) {
                for (uint32_t& index : queue)
                    if (index >= i) ++index;
                const auto at = std::ranges::find(queue, i + 1);
                if (at != queue.end()) queue.insert(at, i);
            }
            EXPECT_NE(said(harmed), "accepted") << name << ": " << text(program, i);
        }
    }
}

}  // namespace
}  // namespace tessera
