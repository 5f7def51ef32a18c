// Plans over many shapes and machines: all pass the check and its slow twin; every row, unit and
// head is some tile's, once; a plan depends on the request and on nothing else.
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "plan/support.h"

#include "support/published.h"

namespace tessera {
namespace {

using test::expect_cut;
using test::pieces;
using test::request;

struct Named {
    const char* name;
    Shape shape;
};

const std::vector<Named>& shapes() {
    static const std::vector<Named> all = {
        {"toy", test::toy_shape()},
        {"two layers", test::two_layers()},
        {"heads of no whole unit", test::toy_shape({{"head_dim", 26}, {"v_head_dim", 20}})},
        {"widths of no whole unit", test::toy_shape({{"hidden_size", 224}, {"vocab_size", 256}})},
        {"a window longer than a chunk", test::toy_shape({{"sliding_window", 600}})},
        {"one expert a token of many",
         test::toy_shape({{"n_routed_experts", 40}, {"num_experts_per_tok", 1}})},
        {"all experts", test::toy_shape({{"n_routed_experts", 3}})},
        {"no experts", test::toy_shape({{"moe_layer_freq", {0, 0, 0, 0}}})},
    };
    return all;
}

// Calls each(request, name) for every combination that can be.
template <typename Each>
void over_requests(const std::vector<uint32_t>& workers, const std::vector<uint32_t>& rows,
                   Each each) {
    for (const Named& named : shapes()) {
        for (const uint32_t ranks : kRankCounts) {
            ASSERT_EQ(ranks_problem(named.shape, ranks), std::nullopt) << named.name;
            for (const uint32_t w : workers) {
                for (const uint32_t r : rows) {
                    for (const Blocks blocks : {Blocks::none, Blocks::int16}) {
                        SCOPED_TRACE(fmt::format("{}: {} ranks, {} workers, {} rows, {}",
                                                 named.name, ranks, w, r,
                                                 blocks == Blocks::none ? "floats" : "blocks"));
                        each(request(named.shape, ranks, w, r, blocks));
                    }
                }
            }
        }
    }
}

TEST(Plan, PassesTheCheck) {
    over_requests({1, 2, 3, 5, 16, 33}, {1, 2, 3, 4, 5, 6, 7, 8, 64},
                  [](const PlanRequest& r) { EXPECT_EQ(check(plan(r)).value_or(""), ""); });
}

TEST(Plan, PassesTheSlowTwinOfTheCheck) {
    for (const Named& named : shapes()) {
        for (const auto& [ranks, workers, rows] :
             {std::tuple{1u, 2u, 1u}, {1u, 3u, 4u}, {2u, 2u, 2u}, {8u, 1u, 1u}}) {
            SCOPED_TRACE(
                fmt::format("{}: {} ranks, {} workers, {} rows", named.name, ranks, workers, rows));
            EXPECT_EQ(
                test::slow_fault(plan(request(named.shape, ranks, workers, rows))).value_or(""),
                "");
        }
    }
}

TEST(Plan, PublishedModelsPass) {
    const Shape pro = parse_shape(test::pro_fp4_config(), "pro");
    const Shape flash = parse_shape(test::flash26_config(), "flash");
    EXPECT_EQ(check(plan(request(pro, 8, 16, 1, Blocks::none, 4096))).value_or(""), "");
    EXPECT_EQ(check(plan(request(flash, 1, 16, 8, Blocks::int8, 4096))).value_or(""), "");
    EXPECT_EQ(check(plan(request(flash, 4, 8, 8, Blocks::none, 4096))).value_or(""), "");
}

TEST(Plan, IsAFunctionOfTheRequest) {
    over_requests({1, 3}, {1, 8}, [](const PlanRequest& r) {
        const Program a = plan(r), b = plan(PlanRequest(r));
        EXPECT_EQ(a.tiles, b.tiles);
        EXPECT_EQ(a.queues, b.queues);
        EXPECT_EQ(a.signals, b.signals);
        EXPECT_EQ(a.arena_bytes, b.arena_bytes);
        ASSERT_EQ(a.buffers.size(), b.buffers.size());
        for (size_t i = 0; i < a.buffers.size(); ++i) {
            EXPECT_EQ(a.buffers[i].offset, b.buffers[i].offset);
            EXPECT_EQ(a.buffers[i].bytes(), b.buffers[i].bytes());
        }
    });
}

// ------------------------------------------------------------------------------- who does what

// What begin and end of a phase's tiles count to, written down from the shape.
uint32_t total_of(const PlanRequest& r, Op op, uint32_t layer, uint32_t rank) {
    const Shape& s = r.shape;
    const AttentionShape& a = s.attention(layer);
    const uint32_t kv = std::max(1u, a.kv_heads / r.ranks), heads = a.heads / r.ranks;
    switch (op) {
        case Op::embed:
        case Op::norm:
            return r.rows;
        case Op::qkv:
            return pieces(heads * a.head_dim + kv * (a.head_dim + a.v_head_dim), 16);
        case Op::attend:
        case Op::merge:
            return heads;
        case Op::output:
        case Op::exchange:
        case Op::down:
            return pieces(s.hidden, 16);
        case Op::router:
            return pieces(s.experts, 16);
        case Op::route:
            return 0;
        case Op::gate_up:
            return pieces((s.is_moe[layer] ? s.expert_width : s.dense_width) / r.ranks, 16);
        case Op::head:
            return pieces(share(s.vocab, rank, r.ranks).count(), 16);
        case Op::gather:
        case Op::fuse:
        case Op::query:
        case Op::keys:
            break;  // of a drafter: see draft_test.cpp
    }
    return 0;
}

TEST(Plan, EveryPhaseIsCutWithoutGapOrOverlap) {
    over_requests({1, 2, 5, 33}, {1, 8}, [](const PlanRequest& r) {
        // Of 203 words, no two ranks' shares have other numbers of units: see the last test.
        const Program p = plan(r);
        struct Key {
            Op op;
            uint32_t layer, rank, slot, part;
            auto operator<=>(const Key&) const = default;
        };
        std::map<Key, std::vector<Span>> phases;
        for (const Tile& t : p.tiles) {
            if (t.op == Op::route) continue;
            // A kv head's tiles are pieces of the query heads; what tells them apart is the part.
            const uint32_t slot = t.op == Op::attend ? 0 : t.slot;
            phases[{t.op, t.layer, t.rank, slot, t.part}].push_back({t.begin, t.end});
        }
        for (const auto& [key, spans] : phases)
            expect_cut(spans, total_of(r, key.op, key.layer, key.rank),
                       fmt::format("{} of layer {}, rank {}, slot {}, part {}", op_name(key.op),
                                   key.layer, key.rank, key.slot, key.part));
        for (uint32_t layer = 0; layer < r.shape.layers; ++layer) {
            for (uint32_t rank = 0; rank < r.ranks; ++rank) {
                for (const Op op : {Op::norm, Op::qkv, Op::attend, Op::output, Op::down})
                    EXPECT_TRUE(phases.contains({op, layer, rank, 0, 0})) << op_name(op);
                const uint32_t slots =
                    r.shape.is_moe[layer]
                        ? std::min(r.shape.experts, r.rows * r.shape.experts_per_token)
                        : 1;
                for (uint32_t slot = 0; slot < slots; ++slot)
                    EXPECT_TRUE(phases.contains({Op::gate_up, layer, rank, slot, 0})) << slot;
                EXPECT_FALSE(phases.contains({Op::gate_up, layer, rank, slots, 0}));
                const bool merged = !is_one_chunk(r, layer);
                EXPECT_EQ(phases.contains({Op::merge, layer, rank, 0, 0}), merged);
                for (const uint16_t which : {kPartialOutput, kPartialDown})
                    EXPECT_EQ(phases.contains({Op::exchange, layer, rank, which, 0}), r.ranks > 1);
            }
        }
    });
}

// Chunk c of a kv head belongs to the tile with c % shares == part: all parts are there, once.
TEST(Plan, EveryChunkOfKeysIsSomeTilesOnce) {
    over_requests({1, 2, 5, 33}, {1}, [](const PlanRequest& r) {
        std::map<std::array<uint32_t, 4>, std::multiset<uint32_t>> parts;  // of a head
        std::map<std::array<uint32_t, 4>, uint32_t> shares;
        for (const Tile& t : plan(r).tiles) {
            if (t.op != Op::attend) continue;
            for (uint32_t head = t.begin; head < t.end; ++head) {
                parts[{t.layer, t.rank, head, t.slot}].insert(t.part);
                shares[{t.layer, t.rank, head, t.slot}] = t.shares;
                const AttentionPart part =
                    attention_part(r.shape.attention(t.layer), t.rank, r.ranks);
                EXPECT_EQ(head / part.group(), t.slot) << "another kv head's query";
            }
        }
        for (const auto& [head, found] : parts) {
            std::multiset<uint32_t> all;
            for (uint32_t part = 0; part < shares[head]; ++part) all.insert(part);
            EXPECT_EQ(found, all);
        }
    });
}

TEST(Plan, AWorkerHasAtMostOneSpanOfAPhase) {
    over_requests({2, 5}, {1, 8}, [](const PlanRequest& r) {
        const Program p = plan(r);
        const auto worker = test::workers_of(p);
        std::set<std::array<uint32_t, 5>> seen;
        for (uint32_t i = 0; i < p.tiles.size(); ++i) {
            const Tile& t = p.tiles[i];
            if (t.op == Op::attend) continue;  // several kv heads to a worker
            EXPECT_TRUE(
                seen.insert({static_cast<uint32_t>(t.op), t.layer, t.slot, t.rank, worker[i]})
                    .second)
                << test::text(p, i);
        }
    });
}

// ------------------------------------------------------------------------------- memory

TEST(Plan, BuffersLieInTheArenaInWholeCacheLines) {
    over_requests({2, 5}, {1, 8}, [](const PlanRequest& r) {
        const Program p = plan(r);
        uint64_t end = 0, sum = 0;
        for (const Buffer& b : p.buffers) {
            EXPECT_EQ(b.offset % 64, 0u);
            EXPECT_EQ(b.row_bytes % 64, 0u);
            EXPECT_LT(b.rank, r.ranks);
            end = std::max(end, b.offset + b.bytes());
            if (b.rank == 0) sum += b.bytes();
        }
        EXPECT_EQ(p.arena_bytes, end);
        EXPECT_LT(p.arena_bytes, sum) << "nothing shares bytes";
    });
}

// ------------------------------------------------------------------------------- faults once found

TEST(Plan, EveryNumberOfWorkersCanRunTheBundledModel) {
    std::string config;
    {
        FILE* const file = std::fopen(TESSERA_MODEL "/config.json", "rb");
        ASSERT_NE(file, nullptr);
        char piece[4096];
        for (size_t n; (n = std::fread(piece, 1, sizeof piece, file)) > 0;) config.append(piece, n);
        std::fclose(file);
    }
    const Shape mini = parse_shape(parse_json(config, "config.json", {}), "config.json");
    std::vector<std::string> refused;
    for (uint32_t workers = 1; workers <= 64; ++workers) {
        for (const uint32_t rows : {1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u, 64u}) {
            if (const auto fault =
                    check(plan(request(mini, 1, workers, rows, Blocks::int16, 2048))))
                refused.push_back(fmt::format("{} workers, {} rows: {}", workers, rows, *fault));
        }
    }
    EXPECT_THAT(refused, testing::IsEmpty());
}

// 33 words over 2 ranks are 16 and 17: one unit and two. A tile beyond its rank's units reads
// weights that are not there.
TEST(Plan, NoTileIsBeyondItsRanksShareOfTheVocabulary) {
    for (const uint32_t vocab : {33u, 203u, 256u}) {
        const Shape shape = test::two_layers({{"vocab_size", vocab}});
        for (const uint32_t ranks : kRankCounts) {
            const Program p = plan(request(shape, ranks, 3, 1));
            for (uint32_t i = 0; i < p.tiles.size(); ++i) {
                const Tile& t = p.tiles[i];
                if (t.op != Op::head) continue;
                EXPECT_LE(t.end, pieces(share(vocab, t.rank, ranks).count(), 16))
                    << vocab << " words over " << ranks << " ranks: " << test::text(p, i);
            }
        }
    }
}

}  // namespace
}  // namespace tessera
