// The balance that check() demands, computed again from nothing but the program's tiles, queues and
// the shape: bytes of a unit from the table of tiles/packed.h, for every number of live slots.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "plan/support.h"

#include "support/published.h"

namespace tessera {
namespace {

using test::request;

// Bytes of one unit of 16 rows, and the rows of the whole matrix on one rank.
struct Matrix {
    double unit_bytes;
    uint32_t rows;
};

double unit_bytes(const char* format, uint32_t columns) {
    const double panels = (columns + 127) / 128;
    const std::string name(format);
    return panels * (name == "mxfp4" ? 1088 : name == "fp8" ? 2112 : name == "bf16" ? 4096 : 8192);
}

// Of the toys: fp8 attention and dense layers, bf16 output projection and head, f32 router, and
// experts as `expert`.
Matrix matrix(const PlanRequest& r, const Tile& t, const char* expert) {
    const Shape& s = r.shape;
    const AttentionShape& a = s.attention(t.layer);
    const uint32_t heads = a.heads / r.ranks, kv = std::max(1u, a.kv_heads / r.ranks);
    const bool moe = s.is_moe[t.layer];
    const uint32_t width = (moe ? s.expert_width : s.dense_width) / r.ranks;
    const char* const inner = moe ? expert : "fp8";
    switch (t.op) {
        case Op::qkv:
            return {unit_bytes("fp8", s.hidden),
                    heads * a.head_dim + kv * (a.head_dim + a.v_head_dim)};
        case Op::output:
            return {unit_bytes("bf16", heads * a.v_head_dim), s.hidden};
        case Op::router:
            return {unit_bytes("f32", s.hidden), s.experts};
        case Op::gate_up:
            return {unit_bytes(inner, s.hidden), 2 * ((width + 15) / 16 * 16)};
        case Op::down:
            return {unit_bytes(inner, width), s.hidden};
        case Op::head:
            return {unit_bytes("bf16", s.hidden), (s.vocab + r.ranks - 1) / r.ranks};
        default:
            return {0, 0};
    }
}

// One worker's most and the mean.
void expect_even(const std::vector<double>& bytes, double granule, const std::string& what) {
    double sum = 0, most = 0;
    for (const double one : bytes) {
        sum += one;
        most = std::max(most, one);
    }
    const double mean = sum / static_cast<double>(bytes.size());
    EXPECT_LE(most, std::max(1.03 * mean, mean + granule) + 1) << what << ", mean " << mean;
}

enum class Of { phases, whole };

void expect_balance(const Program& p, const char* expert, Of of = Of::phases) {
    const PlanRequest& r = p.request;
    const auto worker = test::workers_of(p);
    // (layer, rank, op) -> by slot -> by worker
    std::map<std::tuple<uint32_t, uint32_t, Op>, std::vector<std::vector<double>>> phases;
    std::map<Op, double> granules;
    std::vector<std::vector<double>> whole(r.ranks, std::vector<double>(r.workers));
    std::map<std::tuple<uint32_t, uint32_t, Op, uint32_t>, double> read;  // bytes, by slot
    for (uint32_t i = 0; i < p.tiles.size(); ++i) {
        const Tile& t = p.tiles[i];
        const Matrix m = matrix(r, t, expert);
        if (m.rows == 0) continue;
        // A gate_up tile counts pairs of units; two pairs are its granule.
        const double units = (t.op == Op::gate_up ? 2.0 : 1.0) * (t.end - t.begin);
        const uint32_t slot = t.op == Op::gate_up ? t.slot : 0;
        auto& slots = phases[{t.layer, t.rank, t.op}];
        if (slots.size() <= slot) slots.resize(slot + 1, std::vector<double>(r.workers));
        slots[slot][worker[i] % r.workers] += units * m.unit_bytes;
        whole[t.rank][worker[i] % r.workers] += units * m.unit_bytes;
        read[{t.layer, t.rank, t.op, slot}] += units * m.unit_bytes;
        granules[t.op] = std::max(granules[t.op], (t.op == Op::gate_up ? 4 : 1) * m.unit_bytes);
        if (t.op != Op::head) {
            EXPECT_EQ(source_units(r, weight_span(t).source, t.layer), (m.rows + 15) / 16);
        }
        EXPECT_EQ(static_cast<double>(source_unit_bytes(r, weight_span(t).source, t.layer)),
                  m.unit_bytes)
            << test::text(p, i);
    }
    for (const auto& [key, slots] : phases) {
        const auto& [layer, rank, op] = key;
        std::vector<double> live(r.workers);
        for (uint32_t slot = 0; slot < slots.size(); ++slot) {
            for (uint32_t w = 0; w < r.workers; ++w) live[w] += slots[slot][w];
            expect_even(live, granules[op],
                        fmt::format("{} of layer {}, rank {}, {} live slots", op_name(op), layer,
                                    rank, slot + 1));
        }
    }
    double one_of_each = 0;
    for (const auto& [op, granule] : granules) one_of_each += granule;
    for (uint32_t rank = 0; rank < r.ranks && of == Of::whole; ++rank)
        expect_even(whole[rank], one_of_each, fmt::format("all of rank {}", rank));
    // What is read is each matrix once.
    for (const auto& [key, bytes] : read) {
        const auto& [layer, rank, op, slot] = key;
        Tile t;
        t.op = op;
        t.layer = static_cast<uint16_t>(layer);
        const Matrix m = matrix(r, t, expert);
        EXPECT_EQ(bytes, (m.rows + 15) / 16 * m.unit_bytes)
            << op_name(op) << " of layer " << layer << ", slot " << slot;
    }
}

// Calls each(request, format of the experts).
template <typename Each>
void over_toys(Each each) {
    for (const uint32_t ranks : kRankCounts) {
        for (const uint32_t workers : {1u, 2u, 3u, 5u, 16u, 33u}) {
            for (const uint32_t rows : {1u, 3u, 8u, 64u}) {
                SCOPED_TRACE(fmt::format("{} ranks, {} workers, {} rows", ranks, workers, rows));
                // Shares of the head that have as many units on every rank.
                each(request(test::toy_shape({{"vocab_size", 256}}), ranks, workers, rows),
                     "mxfp4");
                const Json fp8 = {{"vocab_size", 256},
                                  {"quantization_config", {{"store_dtype", nullptr}}}};
                each(request(test::toy_shape(fp8), ranks, workers, rows), "fp8");
            }
        }
    }
}

TEST(Balance, HoldsForEveryNumberOfLiveSlots) {
    over_toys([](const PlanRequest& r, const char* expert) { expect_balance(plan(r), expert); });
}

TEST(Balance, HoldsForAPublishedModel) {
    const Shape pro = parse_shape(test::pro_fp4_config(), "pro");
    expect_balance(plan(request(pro, 8, 12, 1, Blocks::int16, 4096)), "mxfp4", Of::whole);
}

TEST(Balance, HoldsForTheWholeProgram) {
    over_toys([](const PlanRequest& r, const char* expert) {
        expect_balance(plan(r), expert, Of::whole);
    });
}

// Three pairs of units are a granule and a half. The half must not be the same worker's in every
// slot.
TEST(Balance, HoldsWhereAnExpertIsNoWholeNumberOfGranules) {
    const Shape shape = test::toy_shape(
        {{"moe_intermediate_size", 48}, {"quantization_config", {{"store_dtype", nullptr}}}});
    for (const uint32_t workers : {1u, 2u, 3u, 4u, 5u, 16u}) {
        SCOPED_TRACE(fmt::format("{} workers", workers));
        expect_balance(plan(request(shape, 1, workers, 8)), "fp8", Of::whole);
    }
}

// Where granules are left over in a slot and the last of them is cut, the cut one must be among
// those left over: a worker that has only the cut one falls behind by more than a granule, and
// others get ahead by as much.
TEST(Balance, HoldsForExpertsOfAnyWidth) {
    std::vector<std::string> refused;
    for (const uint32_t width : {40u, 48u, 80u, 112u, 200u, 272u, 359u}) {
        const Shape shape =
            test::two_layers({{"moe_intermediate_size", width}, {"quantization_config", nullptr}});
        for (uint32_t workers = 1; workers <= 12; ++workers) {
            for (const uint32_t rows : {1u, 3u, 8u}) {
                if (const auto fault = check(plan(request(shape, 1, workers, rows))))
                    refused.push_back(fmt::format("width {}, {} workers, {} rows: {}", width,
                                                  workers, rows, *fault));
            }
        }
    }
    EXPECT_THAT(refused, testing::IsEmpty());
}

}  // namespace
}  // namespace tessera
