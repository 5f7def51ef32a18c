// The drafter on the machines: its blocks against the slow twin's, bit-equal however many workers
// walk and however its context came, and the taps that the target leaves for it.
#include <gtest/gtest.h>

#include "reference/drafter.h"
#include "runtime/support.h"

namespace tessera {
namespace {

using test::relative_difference;
using test::Toy;

// A target, a drafter of it, both twins, and context that some target might have left.
struct Pair {
    explicit Pair(const Json& changes = Json::object(), uint64_t seed = 5)
        : shape(test::toy_drafter_shape(changes)),
          toy(test::toy_shape(), seed),
          made(test::seeded_checkpoint(shape, seed)),
          weights(bind_drafter(made.checkpoint, shape, test::seeded_mask(shape, seed))) {}

    PackedWeights pack(const PackedWeights& target) const {
        return pack_drafter(weights, target,
                            {.ranks = static_cast<uint32_t>(target.ranks.size()),
                             .threads = 1,
                             .progress = {},
                             .drop = {}});
    }
    uint32_t columns() const { return weights.fc.columns; }

    DrafterShape shape;
    Toy toy;
    test::SeededCheckpoint made;
    DrafterWeights weights;
};

// One sequence of a machine's drafter.
class Drafting {
  public:
    Drafting(CpuMachine& machine, uint32_t context = test::kContext)
        : machine_(machine),
          block_(machine.drafter()->drafter->block),
          cache_(machine.drafter()->shape, machine.options().ranks, context + block_) {}

    // Takes in rows of taps, in steps of `rows`.
    void extend(std::span<const float> taps, size_t columns, size_t rows) {
        keep(taps);
        for (size_t at = 0; at < pending_.size() / columns;) {
            const size_t count = std::min(rows, pending_.size() / columns - at);
            StepInput input;
            const auto some = context(at, count, columns);
            input.context = {&cache_, length_, some, 0};
            machine_.draft(input);
            length_ += static_cast<uint32_t>(count);
            at += count;
        }
        pending_.clear();
    }

    // Takes in at most kDecodeRowsMax rows and drafts behind them: logits of slots 1…
    std::vector<float> block(uint32_t anchor, std::span<const float> taps, size_t columns) {
        keep(taps);
        const auto some = context(0, taps.size() / columns, columns);
        std::vector<uint32_t> tokens(block_), positions(block_);
        tokens[0] = anchor;
        const uint32_t at = length_ + static_cast<uint32_t>(some.size());
        std::iota(positions.begin(), positions.end(), at);
        const std::vector<const KvCache*> caches(block_, &cache_);
        StepInput input{tokens, positions, caches, 1};
        input.context = {&cache_, length_, some, 0};
        machine_.draft(input);
        length_ = at;
        pending_.clear();
        const uint32_t vocab = machine_.weights().shape.vocab;
        std::vector<float> logits(size_t{block_ - 1} * vocab);
        for (uint32_t row = 1; row < block_; ++row)
            copy(row, std::span(logits).subspan((row - 1ull) * vocab, vocab));
        return logits;
    }

  private:
    void copy(uint32_t row, std::span<float> out) const {
        const std::span<const float> found = machine_.draft_logits_at(row, out);
        if (found.data() != out.data()) std::ranges::copy(found, out.begin());
    }
    void keep(std::span<const float> taps) {
        for (const float value : taps) pending_.push_back(to_bf16(value));
    }
    std::vector<const bf16*> context(size_t from, size_t count, size_t columns) const {
        std::vector<const bf16*> rows;
        for (size_t i = 0; i < count; ++i) rows.push_back(&pending_[(from + i) * columns]);
        return rows;
    }

    CpuMachine& machine_;
    uint32_t block_;
    KvCache cache_;
    std::vector<bf16> pending_;
    uint32_t length_ = 0;
};

struct Case {
    const char* name;
    Json changes;
    uint32_t context;
};
const Case kCases[] = {
    {"window", Json::object(), 40},
    {"empty", Json::object(), 0},
    {"short", Json::object(), 3},
    {"full", {{"dflash_config", {{"use_swa", false}, {"attention_sink_bias", false}}}}, 530},
    {"two_chunks", {{"dflash_config", {{"swa_window_size", 509}}}}, 700},
};

// All but the last few rows in steps of `rows`, those with the block.
std::vector<float> drafted(CpuMachine& machine, const Pair& pair, std::span<const float> taps,
                           size_t rows, uint32_t anchor = 17) {
    Drafting drafting(machine);
    const size_t columns = pair.columns(), count = taps.size() / columns;
    const size_t with_block = std::min<size_t>(count, 5);
    drafting.extend(taps.first((count - with_block) * columns), columns, rows);
    return drafting.block(anchor, taps.last(with_block * columns), columns);
}

CpuOptions options(uint32_t ranks, uint32_t workers) {
    CpuOptions o;
    o.ranks = ranks;
    o.workers = workers;
    o.context = test::kContext;
    o.pin = false;
    return o;
}

TEST(Draft, EqualsItsSlowTwin) {
    for (const Case& c : kCases) {
        const Pair pair(c.changes);
        const std::vector<float> taps =
            test::seeded_rows("taps", uint64_t{c.context} * pair.columns(), 3);
        const ReferenceDrafter reference(pair.weights, pair.toy.weights, Rounding::bf16);
        ReferenceDrafter::Cache cache;
        reference.extend(cache, taps);
        const std::vector<float> expected = reference.logits(reference.propose(cache, 17));
        for (const uint32_t ranks : {1u, 2u, 4u}) {
            const PackedWeights target = pair.toy.pack(ranks), packed = pair.pack(target);
            CpuMachine machine(target, options(ranks, 2), &packed);
            // The order of sums differs, and so does a rounding now and then.
            EXPECT_LE(relative_difference(drafted(machine, pair, taps, 64), expected), 1.5e-2)
                << c.name << ", " << ranks << " ranks";
        }
    }
}

TEST(Draft, DoesNotDependOnWorkersNorOnHowContextCame) {
    for (const Case& c : kCases) {
        const Pair pair(c.changes);
        const std::vector<float> taps =
            test::seeded_rows("taps", uint64_t{c.context} * pair.columns(), 4);
        const PackedWeights target = pair.toy.pack(), packed = pair.pack(target);
        CpuMachine one(target, options(1, 1), &packed), three(target, options(1, 3), &packed);
        const std::vector<float> expected = drafted(one, pair, taps, 64);
        EXPECT_EQ(drafted(three, pair, taps, 64), expected) << c.name;
        EXPECT_EQ(drafted(three, pair, taps, 7), expected) << c.name;
        EXPECT_EQ(drafted(one, pair, taps, 1), expected) << c.name;
        CpuOptions delayed = options(1, 3);
        delayed.adversary = 77;
        CpuMachine dawdling(target, delayed, &packed);
        EXPECT_EQ(drafted(dawdling, pair, taps, 7), expected) << c.name << ", with delays";
        EXPECT_NE(drafted(one, pair, taps, 64, 18), expected) << c.name << ": another anchor";
    }
}

// What the block leaves in the cache is overwritten by the context that comes.
TEST(Draft, ABlockLeavesNothingBehind) {
    const Pair pair;
    const std::vector<float> taps = test::seeded_rows("taps", 60ull * pair.columns(), 5);
    const PackedWeights target = pair.toy.pack(), packed = pair.pack(target);
    CpuOptions delayed = options(1, 2);
    delayed.adversary = 78;  // this one runs under the thread sanitizer too
    CpuMachine machine(target, delayed, &packed);
    const size_t columns = pair.columns();
    const std::vector<float> expected = drafted(machine, pair, taps, 64);
    Drafting drafting(machine);
    for (size_t at = 0; at + 5 <= 55; at += 5)
        drafting.block(static_cast<uint32_t>(at),
                       std::span(taps).subspan(at * columns, 5 * columns), columns);
    EXPECT_EQ(drafting.block(17, std::span(taps).last(5 * columns), columns), expected);
}

TEST(Draft, SeesNothingBeforeSeenFrom) {
    const Pair pair;
    const std::vector<float> taps = test::seeded_rows("taps", 10ull * pair.columns(), 5);
    const PackedWeights target = pair.toy.pack(), packed = pair.pack(target);
    CpuMachine machine(target, options(1, 2), &packed);
    const auto draft = [&](float before) {
        // Positions 0 to 9; those before 6 hold `before`.
        KvCache cache(packed.shape, 1, test::kContext);
        std::vector<bf16> rows;
        for (size_t i = 0; i < taps.size(); ++i)
            rows.push_back(to_bf16(i < 6ull * pair.columns() ? before * taps[i] : taps[i]));
        std::vector<const bf16*> some;
        for (uint32_t i = 0; i < 10; ++i) some.push_back(&rows[i * pair.columns()]);
        StepInput input;
        input.context = {&cache, 0, some, 0};
        machine.draft(input);
        std::vector<uint32_t> tokens(8, 17), positions(8);
        std::iota(positions.begin(), positions.end(), 10u);
        const std::vector<const KvCache*> caches(8, &cache);
        StepInput block{tokens, positions, caches, 1};
        block.context = {&cache, 10, {}, 6};
        machine.draft(block);
        const std::span<const float> logits = machine.draft_logits_at(1, {});
        return std::vector<float>(logits.begin(), logits.end());
    };
    EXPECT_EQ(draft(1.0f), draft(-2.0f));
}

TEST(Draft, TheDebugMachineFindsNoPoison) {
    const Pair pair;
    const PackedWeights target = pair.toy.pack(2), packed = pair.pack(target);
    PlanRequest request;
    request.shape = packed.shape;
    request.ranks = 2;
    request.workers = 2;
    request.rows = pair.shape.block;
    request.context = test::kContext + 8;
    request.draft = {.context_rows = 8, .taps = 3};
    const Program block = plan(request);
    request.rows = 0;
    const Program context = plan(request);
    SingleMachine drafts(block, packed, best_kernels()), reads(context, packed, best_kernels());
    KvCache cache(packed.shape, 2, test::kContext + 8);
    std::vector<bf16> taps(3ull * pair.columns(), to_bf16(0.5f));
    std::vector<const bf16*> rows;
    for (uint32_t i = 0; i < 3; ++i) rows.push_back(&taps[i * pair.columns()]);
    StepInput input;
    input.context = {&cache, 0, rows, 0};
    EXPECT_EQ(reads.step(input), std::nullopt);
    std::vector<uint32_t> tokens(8, 17), positions(8);
    std::iota(positions.begin(), positions.end(), 6u);
    const std::vector<const KvCache*> caches(8, &cache);
    StepInput second{tokens, positions, caches, 0};
    second.context = {&cache, 3, rows, 0};
    EXPECT_EQ(drafts.step(second), std::nullopt);
}

// ------------------------------------------------------------------ what the target leaves

TEST(Taps, AreTheStreamAfterTheirLayers) {
    const Pair pair;
    const PackedWeights target = pair.toy.pack(2), packed = pair.pack(target);
    CpuMachine machine(target, options(2, 2), &packed);
    const uint32_t hidden = target.shape.hidden;
    const std::vector<uint32_t> tokens = test::seeded_tokens(11, target.shape.vocab);
    const Reference reference(pair.toy.weights, Rounding::bf16);
    Reference::Cache slow;
    std::vector<std::vector<float>> expected(target.shape.layers);
    reference.forward(slow, tokens, [&](uint32_t layer, auto stage, auto values) {
        if (stage == Reference::Stage::residual)
            expected[layer].assign(values.begin(), values.end());
    });

    const auto captured = [&](size_t rows) {
        KvCache cache(target.shape, 2, test::kContext);
        std::vector<bf16> kept(tokens.size() * pair.columns());
        for (size_t at = 0; at < tokens.size(); at += rows) {
            const size_t count = std::min(rows, tokens.size() - at);
            std::vector<uint32_t> positions(count);
            std::iota(positions.begin(), positions.end(), static_cast<uint32_t>(at));
            const std::vector<const KvCache*> caches(count, &cache);
            std::vector<bf16*> taps;
            for (size_t i = 0; i < count; ++i) taps.push_back(&kept[(at + i) * pair.columns()]);
            machine.step({std::span(tokens).subspan(at, count), positions, caches, 0, taps});
        }
        return kept;
    };
    const std::vector<bf16> whole = captured(11);
    std::vector<float> found, wanted;
    for (size_t row = 0; row < tokens.size(); ++row) {
        for (size_t tap = 0; tap < pair.shape.taps.size(); ++tap) {
            for (uint32_t d = 0; d < hidden; ++d) {
                found.push_back(to_float(whole[row * pair.columns() + tap * hidden + d]));
                wanted.push_back(expected[pair.shape.taps[tap]][row * hidden + d]);
            }
        }
    }
    EXPECT_LE(relative_difference(found, wanted), 1e-2);
    const auto bits = [](const std::vector<bf16>& values) {
        std::vector<float> floats;
        for (const bf16 value : values) floats.push_back(to_float(value));
        return floats;
    };
    EXPECT_EQ(bits(captured(1)), bits(whole));
    EXPECT_EQ(bits(captured(4)), bits(whole));
}

TEST(Taps, AreLeftOutWhereNobodyWantsThem) {
    const Pair pair;
    const PackedWeights target = pair.toy.pack(), packed = pair.pack(target);
    CpuMachine machine(target, options(1, 2), &packed);
    KvCache cache(target.shape, 1, test::kContext);
    const std::vector<uint32_t> tokens = test::seeded_tokens(3, target.shape.vocab);
    const std::vector<uint32_t> positions = {0, 1, 2};
    const std::vector<const KvCache*> caches(3, &cache);
    std::vector<bf16> kept(pair.columns());
    const std::vector<bf16*> taps = {nullptr, kept.data(), nullptr};
    machine.step({tokens, positions, caches, 0, taps});
    EXPECT_TRUE(std::ranges::any_of(kept, [](bf16 value) { return to_float(value) != 0; }));
    machine.step({tokens, positions, caches, 0});
}

}  // namespace
}  // namespace tessera
