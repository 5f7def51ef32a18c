// What the tests of a card share: a target on it and a sequence, and the gate that looks at every
// phase.
#pragma once

#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/gpu/machine.h"
#include "runtime/gpu/plans.h"
#include "runtime/support.h"

namespace tessera::test {

// A stream that can be captured, for the whole run.
inline cudaStream_t stream() {
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

inline constexpr uint32_t kGpuContext = 1200;

// A target on the card, and one sequence of it.
class Device {
  public:
    Device(const PackedWeights& packed, gpu::Path path, uint32_t context = kGpuContext,
           const gpu::Kernel& kernel = gpu::kWalk)
        : Device(gpu::upload(packed, 0), path, context, kernel) {}
    Device(gpu::DeviceWeights weights, gpu::Path path, uint32_t context = kGpuContext,
           const gpu::Kernel& kernel = gpu::kWalk)
        : weights_(std::move(weights)),
          walker_(gpu::target_program(weights_, context, nullptr), weights_,
                  {.path = path,
                   .context = context,
                   .loop_back = weights_.ranks > 1,
                   .kernel = &kernel},
                  stream()),
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

inline CpuOptions cpu_options(uint32_t context = kGpuContext) {
    CpuOptions o;
    o.workers = 2;
    o.context = context;
    o.pin = false;
    return o;
}

// Shapes that differ in every dimension that the kernels depend on.
inline const std::vector<std::pair<const char*, Json>> kShapes = {
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

// Op by op, against the CPU's tiles of one worker: what a phase leaves is what the same tiles
// leave. Before each phase the card is given the CPU's values, so that a difference shows where it
// begins, and no router that is all but undecided sends the two different ways.
inline std::vector<float> floats_of(const uint16_t* device, size_t count) {
    std::vector<uint16_t> bits(count);
    EXPECT_EQ(cudaMemcpy(bits.data(), device, count * 2, cudaMemcpyDeviceToHost), cudaSuccess);
    std::vector<float> out;
    for (const uint16_t b : bits) out.push_back(to_float(bf16{b}));
    return out;
}
inline std::vector<float> floats_of(const float* device, size_t count) {
    std::vector<float> out(count);
    EXPECT_EQ(cudaMemcpy(out.data(), device, count * 4, cudaMemcpyDeviceToHost), cudaSuccess);
    return out;
}

class Compared {
  public:
    Compared(const PackedWeights& packed, uint32_t rows, const gpu::Kernel& kernel = gpu::kWalk)
        : packed_(packed),
          rows_(rows),
          weights_(gpu::upload(packed, 0)),
          program_(gpu::target_program(weights_, kGpuContext, nullptr)),
          cpu_program_(cpu_program(packed)),
          walker_(program_, weights_, {.context = kGpuContext, .kernel = &kernel}, stream()),
          cache_(walker_.cache()),
          cpu_cache_(packed.shape, 1, kGpuContext),
          executor_(cpu_program_, packed, best_kernels()),
          scratch_(cpu_program_.request) {}

    const gpu::Walker& walker() const { return walker_; }

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
        r.context = kGpuContext;
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

}  // namespace tessera::test
