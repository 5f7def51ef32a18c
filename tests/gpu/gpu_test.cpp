// The GPU machine against the CPU's, and against itself: one launch or many, one row or eight.
// Without a card these are skipped, and say so; bench/gpu/check.sh runs them where there is one.
#include <cmath>
#include <cstring>
#include <numeric>

#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/mask_embedding.h"
#include "runtime/gpu/machine.h"
#include "runtime/gpu/plans.h"
#include "runtime/support.h"

namespace tessera {
namespace {

using gpu::Path;
using test::Reader;
using test::relative_difference;
using test::seeded_tokens;
using test::Toy;

// A stream that can be captured, for the whole run.
cudaStream_t stream() {
    static const cudaStream_t one = [] {
        cudaStream_t made = nullptr;
        gpu::check_device(cudaStreamCreate(&made), "making a stream");
        return made;
    }();
    return one;
}

class Gpu : public testing::Test {
  protected:
    void SetUp() override {
        if (const std::string why = gpu::no_card(); !why.empty()) GTEST_SKIP() << "no GPU: " << why;
    }
};

constexpr uint32_t kContext = 1200;

// A target on the card, and one sequence of it.
class Device {
  public:
    Device(const PackedWeights& packed, Path path, uint32_t context = kContext)
        : weights_(gpu::upload(packed, 0)),
          walker_(gpu::target_program(weights_, context, nullptr), weights_,
                  {.path = path, .context = context}, stream()),
          cache_(walker_.cache()) {}

    // Logits of every token, in steps of `rows`.
    std::vector<float> read_all(std::span<const uint32_t> tokens, uint32_t rows) {
        std::vector<float> all;
        for (size_t at = 0; at < tokens.size(); at += rows) {
            const auto piece = tokens.subspan(at, std::min<size_t>(rows, tokens.size() - at));
            const auto logits = read(piece);
            all.insert(all.end(), logits.begin(), logits.end());
        }
        return all;
    }

    std::vector<float> read(std::span<const uint32_t> tokens) {
        gpu::Step step{};
        step.rows = static_cast<uint32_t>(tokens.size());
        step.runs = 1;
        step.run[0] = {0, step.rows, length_, 0, cache_.data()};
        for (uint32_t i = 0; i < step.rows; ++i) {
            step.tokens[i] = tokens[i];
            step.positions[i] = length_ + i;
        }
        walker_.launch(step);
        walker_.finish();
        length_ += step.rows;
        std::vector<float> logits(size_t{step.rows} * walker_.vocab());
        EXPECT_EQ(
            cudaMemcpy(logits.data(), walker_.logits(), logits.size() * 4, cudaMemcpyDeviceToHost),
            cudaSuccess);
        return logits;
    }

    uint32_t live_experts() const { return walker_.live_experts(); }
    void rewind(uint32_t length) { length_ = length; }
    gpu::Walker& walker() { return walker_; }

  private:
    gpu::DeviceWeights weights_;
    gpu::Walker walker_;
    gpu::GpuCache cache_;
    uint32_t length_ = 0;
};

CpuOptions cpu_options(uint32_t context = kContext) {
    CpuOptions o;
    o.workers = 2;
    o.context = context;
    o.pin = false;
    return o;
}

// Shapes that differ in every dimension that the kernels depend on.
const std::vector<std::pair<const char*, Json>> kShapes = {
    {"dims of 32 and 16", {{"head_dim", 32}, {"swa_head_dim", 32}}},
    {"dims of 48 and 80",
     {{"head_dim", 48}, {"swa_head_dim", 48}, {"v_head_dim", 80}, {"swa_v_head_dim", 80}}},
    {"one kv head, dense only",
     {{"head_dim", 32},
      {"swa_head_dim", 32},
      {"num_key_value_heads", 1},
      {"moe_layer_freq", {0, 0, 0, 0}}}},
    {"a window of several chunks",
     {{"head_dim", 32}, {"swa_head_dim", 32}, {"sliding_window", 700}}},
    {"fp8 experts",
     {{"head_dim", 32}, {"swa_head_dim", 32}, {"quantization_config", {{"store_dtype", nullptr}}}}},
    {"plain bf16", {{"head_dim", 32}, {"swa_head_dim", 32}, {"quantization_config", nullptr}}},
    {"one expert a token, many experts",
     {{"head_dim", 32},
      {"swa_head_dim", 32},
      {"n_routed_experts", 61},
      {"num_experts_per_tok", 1}}},
    {"wide experts", {{"head_dim", 32}, {"swa_head_dim", 32}, {"moe_intermediate_size", 1792}}},
};

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
        const auto tokens = seeded_tokens(44, packed.shape.vocab);
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

// Op by op, against the CPU's tiles of one worker: what a phase leaves is what the same tiles
// leave. Before each phase the card is given the CPU's values, so that a difference shows where it
// begins, and no router that is all but undecided sends the two different ways.
std::vector<float> floats_of(const uint16_t* device, size_t count) {
    std::vector<uint16_t> bits(count);
    EXPECT_EQ(cudaMemcpy(bits.data(), device, count * 2, cudaMemcpyDeviceToHost), cudaSuccess);
    std::vector<float> out;
    for (const uint16_t b : bits) out.push_back(to_float(bf16{b}));
    return out;
}
std::vector<float> floats_of(const float* device, size_t count) {
    std::vector<float> out(count);
    EXPECT_EQ(cudaMemcpy(out.data(), device, count * 4, cudaMemcpyDeviceToHost), cudaSuccess);
    return out;
}

class Compared {
  public:
    explicit Compared(const PackedWeights& packed, uint32_t rows)
        : packed_(packed),
          rows_(rows),
          weights_(gpu::upload(packed, 0)),
          program_(gpu::target_program(weights_, kContext, nullptr)),
          cpu_program_(cpu_program(packed)),
          walker_(program_, weights_, {.context = kContext}, stream()),
          cache_(walker_.cache()),
          cpu_cache_(packed.shape, 1, kContext),
          executor_(cpu_program_, packed, best_kernels()),
          scratch_(cpu_program_.request) {}

    // The worst difference of a step at `position`, and after which op and layer.
    void step(uint32_t position, double tolerance) {
        const auto tokens = seeded_tokens(rows_, packed_.shape.vocab, position + 1);
        std::vector<uint32_t> positions(rows_);
        std::iota(positions.begin(), positions.end(), position);
        const std::vector<const KvCache*> caches(rows_, &cpu_cache_);
        const StepInput input{tokens, positions, caches, 0};
        executor_.begin(input);
        gpu::Step step{};
        step.rows = rows_;
        step.runs = 1;
        step.run[0] = {0, rows_, position, 0, cache_.data()};
        for (uint32_t i = 0; i < rows_; ++i) {
            step.tokens[i] = tokens[i];
            step.positions[i] = positions[i];
        }
        size_t next = 0;
        for (uint32_t i = 0; i < walker_.phases().size(); ++i) {
            const gpu::Phase& p = walker_.phases()[i];
            give_what_is_read(p);
            walker_.launch_phase(step, i);
            walker_.finish();
            // All tiles up to the next op that is a phase of its own.
            for (bool met = false; next < cpu_program_.tiles.size(); ++next) {
                const Tile& tile = cpu_program_.tiles[next];
                const bool same = tile.op == p.op && tile.layer == p.layer;
                const bool part =
                    tile.op == Op::norm || tile.op == Op::merge || tile.op == Op::route;
                if (met && !same && (!part || tile.op == Op::norm)) break;
                met = met || same;
                executor_.run(tile, scratch_);
            }
            const double found = difference(p);
            EXPECT_LE(found, tolerance) << op_name(p.op) << " of layer " << p.layer;
            if (found > tolerance) return;
        }
    }

  private:
    static Program cpu_program(const PackedWeights& packed) {
        PlanRequest r;
        r.shape = packed.shape;
        r.rows = 8;
        r.context = kContext;
        r.blocks = packed.shape.quantization.mxfp4_experts ? Blocks::int16 : Blocks::none;
        return plan(r);
    }

    // What an op leaves: where the card has it and where the CPU has, in rows of how many columns.
    template <typename Use>
    auto left_by(Op op, const gpu::Phase& p, Use use) {
        const gpu::Network& n = walker_.network();
        const Shape& s = packed_.shape;
        const AttentionShape& a = s.attention(p.layer);
        const bool moe = s.is_moe[p.layer];
        switch (op) {
            case Op::qkv:
                return use(n.query, a.q_rows(), a.q_rows(), Value::query, 1u);
            case Op::attend:
                return use(n.mixed, a.o_columns(), a.o_columns(), Value::mixed, 1u);
            case Op::router:
                return use(n.scores, s.experts, s.experts, Value::scores, 1u);
            case Op::gate_up:
                return use(n.gated, moe ? s.expert_width : s.dense_width, n.gated_columns,
                           Value::gated, moe ? s.experts_per_token : 1u);
            case Op::head:
                return use(n.logits, s.vocab, s.vocab, Value::logits, 1u);
            default:
                return use(n.residual, s.hidden, s.hidden, Value::residual, 1u);
        }
    }

    double difference(const gpu::Phase& p) {
        return left_by(p.op, p, [&](auto... what) { return compare(what...); });
    }

    // Buffers that are not alive together share memory: the CPU's are given while they mean
    // something.
    void give_what_is_read(const gpu::Phase& p) {
        switch (p.op) {
            case Op::attend:
                return give(Op::qkv, p);
            case Op::output:
                give(Op::embed, p);
                return give(Op::attend, p);
            case Op::gate_up:
                give(Op::embed, p);
                if (p.moe) give(Op::router, p);
                return;
            case Op::down:
                give(Op::embed, p);
                return give(Op::gate_up, p);
            case Op::embed:
                return;
            default:
                return give(Op::embed, p);
        }
    }

    // Gives the card what the CPU has of what an op leaves.
    void give(Op op, const gpu::Phase& p) {
        left_by(
            op, p,
            [&](auto* device, uint32_t columns, uint32_t stride, Value value, uint32_t times) {
                using T = std::remove_pointer_t<decltype(device)>;
                std::vector<T> all(size_t{rows_} * times * stride);
                const Buffer& buffer = cpu_program_.buffers[find_buffer(cpu_program_, value, 0)];
                const std::span<const std::byte> bytes = executor_.bytes(buffer);
                for (uint32_t row = 0; row < rows_ * times; ++row) {
                    const auto* from =
                        reinterpret_cast<const float*>(bytes.data() + row * buffer.row_bytes);
                    for (uint32_t c = 0; c < columns; ++c) {
                        if constexpr (std::is_same_v<T, float>) {
                            all[size_t{row} * stride + c] = from[c];
                        } else {
                            all[size_t{row} * stride + c] = to_bf16(from[c]).bits;
                        }
                    }
                }
                EXPECT_EQ(
                    cudaMemcpy(device, all.data(), all.size() * sizeof(T), cudaMemcpyHostToDevice),
                    cudaSuccess);
            });
    }

    template <typename T>
    double compare(const T* device, uint32_t columns, uint32_t stride, Value value,
                   uint32_t times) {
        const std::vector<float> all = floats_of(device, size_t{rows_} * times * stride);
        const Buffer& buffer = cpu_program_.buffers[find_buffer(cpu_program_, value, 0)];
        const std::span<const std::byte> bytes = executor_.bytes(buffer);
        std::vector<float> found, expected;
        for (uint32_t row = 0; row < rows_ * times; ++row) {
            const auto* from =
                reinterpret_cast<const float*>(bytes.data() + row * buffer.row_bytes);
            expected.insert(expected.end(), from, from + columns);
            found.insert(found.end(), all.begin() + size_t{row} * stride,
                         all.begin() + size_t{row} * stride + columns);
        }
        return relative_difference(found, expected);
    }

    const PackedWeights& packed_;
    uint32_t rows_;
    gpu::DeviceWeights weights_;
    Program program_, cpu_program_;
    gpu::Walker walker_;
    gpu::GpuCache cache_;
    KvCache cpu_cache_;
    Executor executor_;
    Scratch scratch_;
};

TEST_F(Gpu, EveryPhaseLeavesWhatTheCpusTilesLeave) {
    for (const auto& [name, changes] : kShapes) {
        SCOPED_TRACE(name);
        const Toy toy(test::toy_shape(changes));
        const PackedWeights packed = toy.pack();
        Compared compared(packed, 8);
        for (uint32_t position = 0; position < 48; position += 8) compared.step(position, 1e-2);
    }
}

// Bit for bit: launches in the place of barriers, one row in the place of eight.
TEST_F(Gpu, ARowNeverKnowsItsNeighboursNorItsPath) {
    for (const auto& [name, changes] : kShapes) {
        const Toy toy(test::toy_shape(changes));
        const PackedWeights packed = toy.pack();
        const auto tokens = seeded_tokens(160, packed.shape.vocab);
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
    for (uint32_t i = 0; i < 300; ++i) {
        device.rewind(0);
        ASSERT_EQ(device.read_all(tokens, 8), expected) << i;
    }
}

// Few and short steps of a small model, for tools that make a kernel a hundred times slower.
TEST_F(Gpu, ASmallModelForTheSanitizers) {
    const Toy toy(test::toy_shape(kShapes[0].second));
    const PackedWeights packed = toy.pack();
    const auto tokens = seeded_tokens(12, packed.shape.vocab);
    const auto expected = Device(packed, Path::graph, 256).read_all(tokens, 8);
    EXPECT_EQ(Device(packed, Path::persistent, 256).read_all(tokens, 3), expected);
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
    for (uint32_t position = 0; position < 160; position += 8) compared.step(position, 1e-2);
}

TEST_F(Gpu, TheBundledModelChoosesTheSameTokens) {
    const Bundled& b = bundled();
    CpuMachine machine(b.packed, cpu_options());
    const auto prompt = seeded_tokens(64, b.shape.vocab);
    Reader cpu(machine);
    Device device(b.packed, Path::persistent);
    auto expected = cpu.read_all(prompt, 8), found = device.read_all(prompt, 8);
    EXPECT_LE(median_difference(found, expected, b.shape.vocab), 1e-2);
    RecordProperty("relative_difference_1e6",
                   static_cast<int>(1e6 * relative_difference(found, expected)));
    uint32_t same = 0, close = 0;
    for (uint32_t i = 0; i < 200; ++i) {
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
    EXPECT_EQ(same + close, 200u);
    EXPECT_GE(same, 196u);
}

TEST_F(Gpu, TheBundledModelsRowsAndPathsAreEqualBitForBit) {
    const Bundled& b = bundled();
    const auto tokens = seeded_tokens(300, b.shape.vocab);
    const auto expected = Device(b.packed, Path::graph).read_all(tokens, 8);
    EXPECT_EQ(Device(b.packed, Path::persistent).read_all(tokens, 8), expected);
    EXPECT_EQ(Device(b.packed, Path::persistent).read_all(tokens, 1), expected);
    EXPECT_EQ(Device(b.packed, Path::persistent).read_all(tokens, 5), expected);
}

TEST_F(Gpu, SeveralSequencesInOneStepAreAsIfAlone) {
    const Bundled& b = bundled();
    const auto one = seeded_tokens(40, b.shape.vocab, 1), two = seeded_tokens(40, b.shape.vocab, 2);
    const auto alone_one = Device(b.packed, Path::persistent).read_all(one, 5);
    const auto alone_two = Device(b.packed, Path::persistent).read_all(two, 3);
    const gpu::DeviceWeights weights = gpu::upload(b.packed, 0);
    gpu::Walker walker(gpu::target_program(weights, kContext, nullptr), weights,
                       {.context = kContext}, stream());
    gpu::GpuCache a(walker.cache()), c(walker.cache());
    std::vector<float> found_one, found_two, logits(8ull * walker.vocab());
    for (uint32_t at = 0; at + 5 <= 40 && at / 5 * 3 + 3 <= 40; at += 5) {
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
    const uint32_t columns = static_cast<uint32_t>(d.taps.size()) * d.hidden, count = 300;
    const auto tokens = seeded_tokens(count, b.shape.vocab);
    CpuMachine machine(b.packed, cpu_options(), &b.drafter);
    const KvCache cache(b.shape, 1, kContext), draft_cache(b.drafter.shape, 1, kContext + d.block);
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
        const gpu::Options options{.path = path, .context = kContext};
        gpu::Walker walker(gpu::target_program(target, kContext, &drafter), target, options,
                           stream());
        gpu::Walker block(gpu::block_program(drafter, kContext), drafter, options, stream());
        gpu::Walker context(gpu::context_program(drafter, kContext), drafter, options, stream());
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
