// What phases say of gains: the host's part, which needs no card.
#include "runtime/gpu/phases.h"

#include <set>

#include <gtest/gtest.h>

#include "runtime/gpu/plans.h"

#include "gpu/pair.h"

namespace tessera {
namespace {

using test::Pair;
using test::Toy;

constexpr uint32_t kContext = 256, kBlocks = 132;

// Weights that lie where a device's would, but in the host's memory.
gpu::DeviceWeights on_host(const PackedWeights& packed, const std::vector<bf16>& gains) {
    const PackedRank& rank = packed.ranks[0];
    gpu::DeviceWeights weights;
    weights.shape = packed.shape;
    weights.layers = rank.layers;
    weights.norm = rank.norm;
    weights.head = rank.head;
    weights.vocab = rank.vocab;
    weights.drafter = packed.drafter;
    weights.fuse = rank.fuse;
    weights.context_norm = rank.context_norm;
    weights.gains = gains.empty() ? nullptr : gains.data();
    return weights;
}

// Phases that normalise: each has its floats once more as bf16. Distinct gains, counted.
size_t expect_gains(const Program& program, const gpu::DeviceWeights& weights, uint32_t hidden) {
    const gpu::CacheLayout cache(weights.shape, 1, program.request.context);
    std::set<const float*> found;
    for (const gpu::Phase& p : phases_of(program, weights, cache, kBlocks).phases) {
        EXPECT_EQ(p.gain != nullptr, p.gains != nullptr) << op_name(p.op) << " " << p.layer;
        if (p.gain == nullptr || p.gains == nullptr || !found.insert(p.gain).second) continue;
        for (uint32_t i = 0; i < hidden; ++i)
            EXPECT_EQ(to_float(bf16{p.gains[i]}), p.gain[i]) << op_name(p.op) << " " << p.layer;
    }
    return found.size();
}

TEST(Phases, EveryNormsGainsAreTheSameAsPairs) {
    const Pair pair;
    const auto gains = gpu::bf16_gains(pair.target.ranks[0]);
    const gpu::DeviceWeights target = on_host(pair.target, gains);
    EXPECT_EQ(expect_gains(gpu::target_program(target, kContext, nullptr), target,
                           pair.target.shape.hidden),
              2 * target.layers.size() + 1);
    const auto drafts = gpu::bf16_gains(pair.drafter.ranks[0]);
    const gpu::DeviceWeights drafter = on_host(pair.drafter, drafts);
    EXPECT_EQ(expect_gains(gpu::block_program(drafter, kContext), drafter, pair.shape.hidden),
              2 * drafter.layers.size() + 2);
    EXPECT_EQ(expect_gains(gpu::context_program(drafter, kContext), drafter, pair.shape.hidden),
              1u);
}

TEST(Phases, OneGainThatIsNoBf16LeavesFloatsToAll) {
    Toy toy(test::toy_shape({{"head_dim", 32}, {"swa_head_dim", 32}}));
    EXPECT_FALSE(gpu::bf16_gains(toy.pack().ranks[0]).empty());
    toy.weights.layers[1].post_norm[7] *= 1 + 0x1p-20f;
    const PackedWeights packed = toy.pack();
    const auto gains = gpu::bf16_gains(packed.ranks[0]);
    EXPECT_TRUE(gains.empty());
    const gpu::DeviceWeights weights = on_host(packed, gains);
    const gpu::CacheLayout cache(weights.shape, 1, kContext);
    for (const gpu::Phase& p :
         phases_of(gpu::target_program(weights, kContext, nullptr), weights, cache, kBlocks).phases)
        EXPECT_EQ(p.gains, nullptr);
}

}  // namespace
}  // namespace tessera
