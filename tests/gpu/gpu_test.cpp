// The GPU machine against the CPU's, and against itself: one launch or many, one row or eight.
// Without a card these are skipped, and say so; bench/gpu/check.sh runs them where there is one.
#include <numeric>

#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/mask_embedding.h"
#include "runtime/gpu/faults.h"
#include "runtime/gpu/plans.h"

#include "gpu/sized.h"
#include "gpu/support.h"

namespace tessera {
namespace {

using gpu::Path;
using test::Compared;
using test::cpu_options;
using test::Device;
using test::Gpu;
using test::kGpuContext;
using test::kShapes;
using test::Reader;
using test::relative_difference;
using test::seeded_tokens;
using test::sized;
using test::stream;
using test::Toy;

// Row by row. A router that is all but undecided may send a row to another expert than the CPU's:
// half of the rows are near, whatever became of others.
double median_difference(std::span<const float> a, std::span<const float> b, uint32_t columns) {
    std::vector<double> rows;
    for (size_t at = 0; at < a.size(); at += columns)
        rows.push_back(relative_difference(a.subspan(at, columns), b.subspan(at, columns)));
    std::ranges::nth_element(rows, rows.begin() + rows.size() / 2);
    return rows[rows.size() / 2];
}

TEST_F(Gpu, EqualsTheCpuWithinRounding) {
    for (const auto& [name, changes] : kShapes) {
        const Toy toy(test::toy_shape(changes));
        const PackedWeights packed = toy.pack();
        const auto tokens = seeded_tokens(sized(44, 11), packed.shape.vocab);
        CpuMachine machine(packed, cpu_options());
        const auto expected = Reader(machine).read_all(tokens, 8);
        for (const Path path : {Path::graph, Path::persistent}) {
            Device device(packed, path);
            EXPECT_LE(median_difference(device.read_all(tokens, 8), expected, packed.shape.vocab),
                      3e-2)
                << name << (path == Path::graph ? ", graph" : ", persistent");
        }
    }
}

TEST_F(Gpu, EveryPhaseLeavesWhatTheCpusTilesLeave) {
    for (const auto& [name, changes] : kShapes) {
        SCOPED_TRACE(name);
        const Toy toy(test::toy_shape(changes));
        const PackedWeights packed = toy.pack();
        Compared compared(packed, 8);
        for (uint32_t position = 0; position < sized(48, 16); position += 8)
            compared.step(position, 1e-2);
    }
}

// Bit for bit: launches in the place of barriers, one row in the place of eight.
TEST_F(Gpu, ARowNeverKnowsItsNeighboursNorItsPath) {
    for (size_t i = 0; i < kShapes.size(); i += sized(1, 2)) {
        const auto& [name, changes] = kShapes[i];
        const Toy toy(test::toy_shape(changes));
        const PackedWeights packed = toy.pack();
        const auto tokens = seeded_tokens(sized(160, 9), packed.shape.vocab);
        const auto expected = Device(packed, Path::graph).read_all(tokens, 8);
        EXPECT_EQ(Device(packed, Path::persistent).read_all(tokens, 8), expected) << name;
        EXPECT_EQ(Device(packed, Path::persistent).read_all(tokens, 1), expected)
            << name << ", one";
        EXPECT_EQ(Device(packed, Path::persistent).read_all(tokens, 3), expected)
            << name << ", three";
    }
}

TEST_F(Gpu, TheSameStepGivesTheSameBitsAgainAndAgain) {
    const Toy toy(test::toy_shape(kShapes[0].second));
    const PackedWeights packed = toy.pack();
    const auto tokens = seeded_tokens(16, packed.shape.vocab);
    Device device(packed, Path::persistent);
    const auto expected = device.read_all(tokens, 8);
    for (uint32_t i = 0; i < sized(300, 3); ++i) {
        device.rewind(0);
        ASSERT_EQ(device.read_all(tokens, 8), expected) << i;
    }
}

// Gains as pairs of bf16 are a shorter way to the same bits.
TEST_F(Gpu, GainsAsFloatsGiveTheSameBits) {
    const Toy toy(test::toy_shape(kShapes[0].second));
    const PackedWeights packed = toy.pack();
    const auto tokens = seeded_tokens(sized(48, 12), packed.shape.vocab);
    gpu::DeviceWeights floats = gpu::upload(packed, 0);
    ASSERT_NE(floats.gains, nullptr);
    floats.gains = nullptr;
    EXPECT_EQ(Device(std::move(floats), Path::persistent).read_all(tokens, 8),
              Device(packed, Path::persistent).read_all(tokens, 8));
}

// One rank of two that hears its own partials in its peer's place is a model of half the heads and
// half the columns: exchanges, and norms by the squares that they leave, against neither.
TEST_F(Gpu, ARankThatHearsItselfIsAModelOfItsOwn) {
    const Toy toy(test::toy_shape(kShapes[0].second));
    const PackedWeights packed = toy.pack(2);
    gpu::DeviceWeights whole = gpu::upload(packed, 0);
    whole.ranks = 1;
    whole.shape.vocab = whole.vocab.count();
    for (AttentionShape* a : {&whole.shape.full, &whole.shape.sliding}) {
        a->heads /= 2;
        a->kv_heads /= 2;
    }
    whole.shape.dense_width /= 2;
    whole.shape.expert_width /= 2;
    const uint32_t vocab = whole.shape.vocab;
    const auto tokens = seeded_tokens(sized(96, 16), vocab);
    const auto expected = Device(std::move(whole), Path::persistent).read_all(tokens, 8);
    const auto found = Device(packed, Path::persistent).read_all(tokens, 8);
    EXPECT_LE(median_difference(found, expected, vocab), 3e-3);
    EXPECT_EQ(Device(packed, Path::graph).read_all(tokens, 8), found);
    EXPECT_EQ(Device(packed, Path::persistent).read_all(tokens, 3), found);
}

// Few and short steps of a small model, for tools that make a kernel a hundred times slower.
TEST_F(Gpu, ASmallModelForTheSanitizers) {
    const Toy toy(test::toy_shape(kShapes[0].second));
    const PackedWeights packed = toy.pack();
    const auto tokens = seeded_tokens(12, packed.shape.vocab);
    const auto expected = Device(packed, Path::graph, 256).read_all(tokens, 8);
    EXPECT_EQ(Device(packed, Path::persistent, 256).read_all(tokens, 3), expected);
}

// The same by the kernel whose every lane arrives at barriers, for a tool that does not see that
// one does for its warp (racecheck).
TEST_F(Gpu, ASmallModelForRacecheck) {
    const Toy toy(test::toy_shape(kShapes[0].second));
    const PackedWeights packed = toy.pack();
    const auto tokens = seeded_tokens(12, packed.shape.vocab);
    const auto read = [&](Path path, uint32_t rows) {
        return Device(packed, path, 256, gpu::kFaultyWalk).read_all(tokens, rows);
    };
    const auto expected = read(Path::graph, 8);
    EXPECT_EQ(read(Path::persistent, 3), expected);
}

// ------------------------------------------------------------------ the bundled model

struct Bundled {
    Bundled() : checkpoint(open_checkpoint(TESSERA_MODEL)) {
        shape = parse_shape(checkpoint.config, "bundled");
        weights = bind(checkpoint, shape);
        packed = pack_weights(
            weights, {.ranks = 1, .threads = 4, .progress = {}, .drop = {}, .fp8 = Fp8::keep});
        const std::filesystem::path folder = std::filesystem::path(TESSERA_MODEL) / "dflash";
        drafter_checkpoint = open_checkpoint(folder);
        const DrafterShape d =
            parse_drafter_shape(drafter_checkpoint.config, shape, "bundled drafter");
        const MappedFile mask(folder / "mask_embedding.pt");
        drafter_weights = bind_drafter(drafter_checkpoint, d,
                                       parse_mask_embedding(mask.bytes(), "mask_embedding.pt"));
        drafter = pack_drafter(drafter_weights, packed,
                               {.ranks = 1, .threads = 4, .progress = {}, .drop = {}});
    }
    Checkpoint checkpoint, drafter_checkpoint;
    Shape shape;
    Weights weights;
    PackedWeights packed;
    DrafterWeights drafter_weights;
    PackedWeights drafter;
};

const Bundled& bundled() {
    static const Bundled one;
    return one;
}

TEST_F(Gpu, EveryPhaseOfTheBundledModelLeavesWhatTheCpusTilesLeave) {
    Compared compared(bundled().packed, 8);
    for (uint32_t position = 0; position < sized(160, 16); position += 8)
        compared.step(position, 1e-2);
}

TEST_F(Gpu, TheBundledModelChoosesTheSameTokens) {
    const Bundled& b = bundled();
    CpuMachine machine(b.packed, cpu_options());
    const auto prompt = seeded_tokens(sized(64, 16), b.shape.vocab);
    Reader cpu(machine);
    Device device(b.packed, Path::persistent);
    auto expected = cpu.read_all(prompt, 8), found = device.read_all(prompt, 8);
    EXPECT_LE(median_difference(found, expected, b.shape.vocab), 1e-2);
    RecordProperty("relative_difference_1e6",
                   static_cast<int>(1e6 * relative_difference(found, expected)));
    const uint32_t steps = sized(200, 6);
    uint32_t same = 0, close = 0;
    for (uint32_t i = 0; i < steps; ++i) {
        const auto last = [&](const std::vector<float>& all) {
            return std::span(all).last(b.shape.vocab);
        };
        const auto best = [](std::span<const float> logits) {
            return static_cast<uint32_t>(std::ranges::max_element(logits) - logits.begin());
        };
        const uint32_t token = best(last(expected)), other = best(last(found));
        same += token == other;
        // Where they differ, the CPU's two best were all but equal.
        if (token != other && last(expected)[token] - last(expected)[other] < 0.05f) ++close;
        expected = cpu.read(std::span(&token, 1));
        found = device.read(std::span(&token, 1));
    }
    EXPECT_EQ(same + close, steps);
    EXPECT_GE(same, steps * 98 / 100);
}

TEST_F(Gpu, TheBundledModelsRowsAndPathsAreEqualBitForBit) {
    const Bundled& b = bundled();
    const auto tokens = seeded_tokens(sized(300, 9), b.shape.vocab);
    const auto expected = Device(b.packed, Path::graph).read_all(tokens, 8);
    EXPECT_EQ(Device(b.packed, Path::persistent).read_all(tokens, 8), expected);
    EXPECT_EQ(Device(b.packed, Path::persistent).read_all(tokens, 1), expected);
    EXPECT_EQ(Device(b.packed, Path::persistent).read_all(tokens, 5), expected);
}

TEST_F(Gpu, SeveralSequencesInOneStepAreAsIfAlone) {
    const Bundled& b = bundled();
    const uint32_t count = sized(40, 10);
    const auto one = seeded_tokens(count, b.shape.vocab, 1),
               two = seeded_tokens(count, b.shape.vocab, 2);
    const auto alone_one = Device(b.packed, Path::persistent).read_all(one, 5);
    const auto alone_two = Device(b.packed, Path::persistent).read_all(two, 3);
    const gpu::DeviceWeights weights = gpu::upload(b.packed, 0);
    gpu::Walker walker(gpu::target_program(weights, kGpuContext, nullptr), weights,
                       {.context = kGpuContext}, stream());
    gpu::GpuCache a(walker.cache()), c(walker.cache());
    std::vector<float> found_one, found_two, logits(8ull * walker.vocab());
    for (uint32_t at = 0; at + 5 <= count && at / 5 * 3 + 3 <= count; at += 5) {
        const uint32_t other = at / 5 * 3;
        gpu::Step step{};
        step.rows = 8;
        step.runs = 2;
        step.run[0] = {0, 5, at, 0, a.data()};
        step.run[1] = {5, 3, other, 0, c.data()};
        for (uint32_t i = 0; i < 8; ++i) {
            step.tokens[i] = i < 5 ? one[at + i] : two[other + i - 5];
            step.positions[i] = i < 5 ? at + i : other + i - 5;
        }
        walker.launch(step);
        walker.finish();
        ASSERT_EQ(
            cudaMemcpy(logits.data(), walker.logits(), logits.size() * 4, cudaMemcpyDeviceToHost),
            cudaSuccess);
        const auto middle = logits.begin() + 5 * walker.vocab();
        found_one.insert(found_one.end(), logits.begin(), middle);
        found_two.insert(found_two.end(), middle, logits.end());
    }
    EXPECT_TRUE(std::equal(found_one.begin(), found_one.end(), alone_one.begin()));
    EXPECT_TRUE(std::equal(found_two.begin(), found_two.end(), alone_two.begin()));
}

// The taps that the target leaves, and the block that the drafter makes of them.
TEST_F(Gpu, TheDrafterEqualsTheCpusWithinRounding) {
    const Bundled& b = bundled();
    const DrafterShape& d = *b.drafter.drafter;
    const uint32_t columns = static_cast<uint32_t>(d.taps.size()) * d.hidden,
                   count = sized(300, 12);
    const auto tokens = seeded_tokens(count, b.shape.vocab);
    CpuMachine machine(b.packed, cpu_options(), &b.drafter);
    const KvCache cache(b.shape, 1, kGpuContext),
        draft_cache(b.drafter.shape, 1, kGpuContext + d.block);
    std::vector<bf16> taps(size_t{count} * columns);
    std::vector<const bf16*> rows;
    for (uint32_t i = 0; i < count; ++i) rows.push_back(&taps[size_t{i} * columns]);
    for (uint32_t at = 0; at < count; at += 4) {
        std::vector<uint32_t> positions(4);
        std::iota(positions.begin(), positions.end(), at);
        const std::vector<const KvCache*> caches(4, &cache);
        std::vector<bf16*> to;
        for (uint32_t i = 0; i < 4; ++i) to.push_back(&taps[size_t{at + i} * columns]);
        machine.step({std::span(tokens).subspan(at, 4), positions, caches, 0, to});
    }
    const auto cpu_block = [&](uint32_t context_rows) {
        std::vector<uint32_t> block(d.block, 17), positions(d.block);
        std::iota(positions.begin(), positions.end(), count);
        const std::vector<const KvCache*> caches(d.block, &draft_cache);
        for (uint32_t at = 0; at < count; at += context_rows) {
            const uint32_t some = std::min(context_rows, count - at);
            StepInput input;
            if (at + some == count) input = {block, positions, caches, 1};
            input.context = {&draft_cache, at, std::span(rows).subspan(at, some), 0};
            machine.draft(input);
        }
        std::vector<float> logits;
        std::vector<float> memory(b.shape.vocab);
        for (uint32_t row = 1; row < d.block; ++row) {
            const auto found = machine.draft_logits_at(row, memory);
            logits.insert(logits.end(), found.begin(), found.end());
        }
        return logits;
    };
    const std::vector<float> expected = cpu_block(8);

    const gpu::DeviceWeights target = gpu::upload(b.packed, 0);
    const gpu::DeviceWeights drafter = gpu::upload_drafter(b.drafter, target, 0);
    for (const Path path : {Path::graph, Path::persistent}) {
        const gpu::Options options{.path = path, .context = kGpuContext};
        gpu::Walker walker(gpu::target_program(target, kGpuContext, &drafter), target, options,
                           stream());
        gpu::Walker block(gpu::block_program(drafter, kGpuContext), drafter, options, stream());
        gpu::Walker context(gpu::context_program(drafter, kGpuContext), drafter, options, stream());
        gpu::GpuCache main(walker.cache()), draft(block.cache());
        gpu::DeviceMemory kept(size_t{count} * columns * 2);
        auto* const at_device = reinterpret_cast<uint16_t*>(kept.data());
        for (uint32_t at = 0; at < count; at += 4) {
            gpu::Step step{};
            step.rows = 4;
            step.runs = 1;
            step.run[0] = {0, 4, at, 0, main.data()};
            for (uint32_t i = 0; i < 4; ++i) {
                step.tokens[i] = tokens[at + i];
                step.positions[i] = at + i;
                step.taps[i] = at_device + size_t{at + i} * columns;
            }
            walker.launch(step);
            walker.finish();
        }
        std::vector<bf16> found_taps(taps.size());
        ASSERT_EQ(cudaMemcpy(found_taps.data(), kept.data(), kept.bytes(), cudaMemcpyDeviceToHost),
                  cudaSuccess);
        std::vector<float> a, c;
        for (size_t i = 0; i < taps.size(); ++i) {
            a.push_back(to_float(found_taps[i]));
            c.push_back(to_float(taps[i]));
        }
        EXPECT_LE(median_difference(a, c, columns), 2e-2);

        for (uint32_t at = 0; at < count; at += 8) {
            gpu::Step step{};
            step.context_rows = std::min(8u, count - at);
            step.context_position = at;
            for (uint32_t i = 0; i < step.context_rows; ++i)
                step.context_taps[i] = at_device + size_t{at + i} * columns;
            step.run[0] = {0, 0, count, 0, draft.data()};
            const bool last = at + step.context_rows == count;
            if (last) {
                step.rows = d.block;
                step.runs = 1;
                step.run[0].rows = d.block;
                for (uint32_t i = 0; i < d.block; ++i) step.positions[i] = count + i;
                step.tokens[0] = 17;
            }
            gpu::Walker& of = last ? block : context;
            of.launch(step);
            of.finish();
        }
        std::vector<float> logits(size_t{d.block} * block.vocab());
        ASSERT_EQ(
            cudaMemcpy(logits.data(), block.logits(), logits.size() * 4, cudaMemcpyDeviceToHost),
            cudaSuccess);
        EXPECT_LE(relative_difference(std::span(logits).subspan(block.vocab()), expected), 2e-2)
            << (path == Path::graph ? "graph" : "persistent");
    }
}

}  // namespace
}  // namespace tessera
