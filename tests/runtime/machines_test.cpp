// What holds between machines: one worker or many, one rank or eight, alone or beside others, under
// any delays; and that the debug machine finds nothing to complain of.
#include <gtest/gtest.h>

#include "runtime/support.h"

namespace tessera {
namespace {

using test::kContext;
using test::Reader;
using test::relative_difference;
using test::seeded_tokens;
using test::Toy;

CpuOptions options(uint32_t workers, uint32_t ranks = 1) {
    CpuOptions o;
    o.ranks = ranks;
    o.workers = workers;
    o.context = kContext;
    o.pin = false;
    return o;
}

// Shapes that differ in every dimension that a plan depends on.
const std::vector<std::pair<const char*, Json>> kShapes = {
    {"toy", Json::object()},
    {"separate projections and odd heads",
     {{"attention_projection_layout", nullptr},
      {"head_dim", 26},
      {"swa_head_dim", 26},
      {"partial_rotary_factor", 0.4},
      {"v_head_dim", 19},
      {"swa_v_head_dim", 7}}},
    {"one kv head, dense only", {{"num_key_value_heads", 1}, {"moe_layer_freq", {0, 0, 0, 0}}}},
    {"a window of several chunks", {{"sliding_window", 700}}},
    {"fp8 experts", {{"quantization_config", {{"store_dtype", nullptr}}}}},
    {"plain bf16", {{"quantization_config", nullptr}}},
    {"one expert a token, many experts", {{"n_routed_experts", 61}, {"num_experts_per_tok", 1}}},
    {"narrow", {{"hidden_size", 32}, {"vocab_size", 17}, {"moe_intermediate_size", 32}}},
};

TEST(Machines, TheDebugMachineFindsNoPoisonAndTheSameBits) {
    for (const auto& [name, changes] : kShapes) {
        const Toy toy(test::toy_shape(changes));
        const PackedWeights packed = toy.pack();
        const auto tokens = seeded_tokens(24, packed.shape.vocab);
        CpuMachine machine(packed, options(3));
        const auto expected = Reader(machine).read_all(tokens, 8);
        PlanRequest request = machine.current().program().request;
        request.workers = 1;
        const Program program = plan(request);
        SingleMachine single(program, packed, best_kernels());
        const KvCache cache(packed.shape, 1, kContext);
        for (uint32_t at = 0; at < tokens.size(); at += 8) {
            std::vector<uint32_t> positions(8);
            std::iota(positions.begin(), positions.end(), at);
            const std::vector<const KvCache*> caches(8, &cache);
            const auto poison =
                single.step({std::span(tokens).subspan(at, 8), positions, caches, 0});
            EXPECT_EQ(poison, std::nullopt) << name << ": " << *poison;
            for (uint32_t row = 0; row < 8; ++row) {
                const auto logits = single.executor().logits(0, row);
                EXPECT_TRUE(std::ranges::equal(
                    logits, std::span(expected).subspan((at + row) * packed.shape.vocab,
                                                        packed.shape.vocab)))
                    << name << ", row " << at + row;
            }
        }
    }
}

TEST(Machines, EveryShapeComputesWhatTheReferenceDoes) {
    for (const auto& [name, changes] : kShapes) {
        const Toy toy(test::toy_shape(changes));
        const PackedWeights packed = toy.pack();
        const auto tokens = seeded_tokens(60, packed.shape.vocab);
        CpuMachine machine(packed, options(2));
        const auto logits = Reader(machine).read_all(tokens, 64);
        const Reference reference(toy.weights, Rounding::bf16);
        Reference::Cache cache;
        const auto expected = reference.logits(reference.forward(cache, tokens));
        // The middle row: where two experts all but tie, rounding decides, and that row and those
        // that see it differ more.
        const uint32_t vocab = packed.shape.vocab;
        std::vector<double> differences;
        for (size_t row = 0; row < tokens.size(); ++row)
            differences.push_back(
                relative_difference(std::span(logits).subspan(row * vocab, vocab),
                                    std::span(expected).subspan(row * vocab, vocab)));
        std::ranges::sort(differences);
        const double median = differences[differences.size() / 2];
        std::printf("%s: %.1e in the middle, %.1e at most\n", name, median, differences.back());
        EXPECT_LT(median, 2e-2) << name;
    }
}

// Far past the window and over three chunks of keys.
TEST(Machines, LongTextsComputeWhatTheReferenceDoes) {
    const Toy toy(test::toy_shape(
        {{"num_hidden_layers", 2}, {"hybrid_layer_pattern", {0, 1}}, {"moe_layer_freq", {0, 1}}}));
    const PackedWeights packed = toy.pack();
    const auto tokens = seeded_tokens(1100, packed.shape.vocab);
    CpuMachine machine(packed, options(3));
    const auto logits = Reader(machine).read_all(tokens, 64);
    const Reference reference(toy.weights, Rounding::bf16);
    Reference::Cache cache;
    const auto expected = reference.logits(reference.forward(cache, tokens));
    EXPECT_LT(
        relative_difference(std::span(logits).last(100 * 203), std::span(expected).last(100 * 203)),
        2e-2);
    CpuMachine other(packed, options(7));
    EXPECT_EQ(Reader(other).read_all(tokens, 37), logits);
}

TEST(Machines, RanksAgreeWithinRounding) {
    const Toy toy(test::toy_shape());
    const auto tokens = seeded_tokens(40, toy.weights.shape.vocab);
    const PackedWeights whole = toy.pack();
    CpuMachine one(whole, options(2));
    const auto expected = Reader(one).read_all(tokens, 8);
    for (const uint32_t ranks : {2u, 4u, 8u}) {
        const PackedWeights packed = toy.pack(ranks);
        CpuMachine machine(packed, options(2, ranks));
        const auto logits = Reader(machine).read_all(tokens, 8);
        EXPECT_LT(relative_difference(logits, expected), 2e-2) << ranks << " ranks";
        for (const uint32_t workers : {1u, 3u}) {
            CpuMachine other(packed, options(workers, ranks));
            EXPECT_EQ(Reader(other).read_all(tokens, 5), logits)
                << ranks << " ranks of " << workers;
        }
    }
}

// Delays between tiles, drawn anew in every step: whatever the scheduler does.
TEST(Machines, DelaysChangeNoBit) {
    const Toy toy(test::toy_shape());
    const auto tokens = seeded_tokens(48, toy.weights.shape.vocab);
    for (const uint32_t ranks : {1u, 2u}) {
        const PackedWeights packed = toy.pack(ranks);
        CpuMachine calm(packed, options(1, ranks));
        const auto expected = Reader(calm).read_all(tokens, 3);
        for (const uint64_t seed : {11u, 12u, 13u}) {
            CpuOptions hostile = options(4, ranks);
            hostile.adversary = seed;
            CpuMachine machine(packed, hostile);
            EXPECT_EQ(Reader(machine).read_all(tokens, 3), expected)
                << ranks << " ranks, seed " << seed;
        }
    }
}

// Rows of several sequences in one step: each as if it were alone.
TEST(Machines, SequencesInOneStepDoNotKnowEachOther) {
    const Toy toy(test::toy_shape());
    const PackedWeights packed = toy.pack();
    const uint32_t vocab = packed.shape.vocab;
    CpuMachine machine(packed, options(2));
    constexpr uint32_t kSequences = 3, kSteps = 20;
    std::vector<std::vector<uint32_t>> texts;
    std::vector<std::vector<float>> alone;
    for (uint32_t s = 0; s < kSequences; ++s) {
        texts.push_back(seeded_tokens(2 * kSteps, vocab, 100 + s));
        alone.push_back(Reader(machine).read_all(texts.back(), 1));
    }
    // Two rows of each, interleaved, at positions that differ by a head start.
    std::vector<std::unique_ptr<KvCache>> caches;
    for (uint32_t s = 0; s < kSequences; ++s)
        caches.push_back(std::make_unique<KvCache>(packed.shape, 1, kContext));
    for (uint32_t step = 0; step < kSteps; ++step) {
        std::vector<uint32_t> tokens, positions;
        std::vector<const KvCache*> rows;
        for (uint32_t half = 0; half < 2; ++half) {
            for (uint32_t s = 0; s < kSequences; ++s) {
                tokens.push_back(texts[s][2 * step + half]);
                positions.push_back(2 * step + half);
                rows.push_back(caches[s].get());
            }
        }
        machine.step({tokens, positions, rows, 0});
        std::vector<float> logits(vocab);
        for (uint32_t row = 0; row < tokens.size(); ++row) {
            machine.logits(row, logits);
            const auto expected =
                std::span(alone[row % kSequences]).subspan(size_t{positions[row]} * vocab, vocab);
            EXPECT_TRUE(std::ranges::equal(logits, expected)) << "step " << step << ", row " << row;
        }
    }
}

// What was verified and rejected is overwritten, and what it overwrote no row could still see.
TEST(Machines, RejectedRowsCostNothing) {
    const Toy toy(test::toy_shape());
    const PackedWeights packed = toy.pack();
    const uint32_t vocab = packed.shape.vocab;
    const auto tokens = seeded_tokens(300, vocab);
    const auto wrong = seeded_tokens(64, vocab, 77);
    CpuMachine machine(packed, options(2));
    const auto expected = Reader(machine).read_all(tokens, 4);
    Reader reader(machine);
    for (uint32_t at = 0; at < tokens.size(); at += 4) {
        reader.read(std::span(wrong).first(at % 3 == 0 ? 64 : 8));
        reader.rewind(at);
        const auto logits = reader.read(std::span(tokens).subspan(at, 4));
        EXPECT_TRUE(std::ranges::equal(
            logits, std::span(expected).subspan(size_t{at} * vocab, logits.size())))
            << "after " << at;
    }
}

TEST(Machines, LogitsOnlyWhereTheyAreWanted) {
    const Toy toy(test::toy_shape());
    const PackedWeights packed = toy.pack();
    const auto tokens = seeded_tokens(20, packed.shape.vocab);
    CpuMachine machine(packed, options(2));
    const auto all = Reader(machine).read(tokens);
    const KvCache cache(packed.shape, 1, kContext);
    std::vector<uint32_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), 0u);
    const std::vector<const KvCache*> caches(tokens.size(), &cache);
    machine.step({tokens, positions, caches, 19});
    std::vector<float> last(packed.shape.vocab);
    machine.logits(19, last);
    EXPECT_TRUE(std::ranges::equal(last, std::span(all).last(packed.shape.vocab)));
}

TEST(Machines, CountLiveExperts) {
    const Toy toy(test::toy_shape());
    const PackedWeights packed = toy.pack();
    CpuMachine machine(packed, options(1));
    const std::vector<uint32_t> same(8, 5);
    Reader reader(machine);
    reader.read(std::span(same).first(1));
    EXPECT_EQ(machine.live_experts(), 3u * 3);  // three layers of experts, three a token
    reader.read(same);
    EXPECT_GE(machine.live_experts(), 3u * 3);
    EXPECT_LE(machine.live_experts(), 3u * 12);
}

}  // namespace
}  // namespace tessera
