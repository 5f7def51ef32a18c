// The gates of a card's tests can fail: a machine that goes wrong in one place
// (runtime/gpu/faults.h) is found by each of them, and what the watchdog says is where it went
// wrong. Without a card these are skipped, and say so.
#include "runtime/gpu/faults.h"

#include <algorithm>

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include "gpu/support.h"

namespace tessera {
namespace {

using gpu::Fault;
using gpu::FaultKind;
using gpu::kFaultyWalk;
using gpu::Path;
using test::Compared;
using test::Device;
using test::kShapes;
using test::seeded_tokens;
using test::Toy;

class GpuFaults : public test::Gpu {
  protected:
    void SetUp() override {
        Gpu::SetUp();
        // A card's context does not survive a fork: the child begins anew.
        GTEST_FLAG_SET(death_test_style, "threadsafe");
    }
    void TearDown() override {
        if (!IsSkipped()) inject({});
    }
    static void inject(const Fault& fault) { ASSERT_EQ(gpu::inject(fault), cudaSuccess); }

    const Toy toy{test::toy_shape(kShapes[0].second)};
    const PackedWeights packed = toy.pack();
};

uint32_t index_of(const gpu::Walker& walker, Op op, uint32_t layer) {
    const auto& phases = walker.phases();
    const auto found = std::ranges::find_if(
        phases, [&](const gpu::Phase& p) { return p.op == op && p.layer == layer; });
    EXPECT_NE(found, phases.end()) << op_name(op) << " of layer " << layer;
    return static_cast<uint32_t>(found - phases.begin());
}

// A step of eight tokens from the start of a text.
gpu::Step first_step(const gpu::GpuCache& cache, uint32_t vocab) {
    gpu::Step step{};
    step.rows = 8;
    step.runs = 1;
    step.run[0] = {0, 8, 0, 0, cache.data()};
    const auto tokens = seeded_tokens(8, vocab);
    for (uint32_t i = 0; i < 8; ++i) {
        step.tokens[i] = tokens[i];
        step.positions[i] = i;
    }
    return step;
}

// The faulty kernel without a fault is the machine: what is found below is the faults.
TEST_F(GpuFaults, NoneIsTheMachineItself) {
    const auto tokens = seeded_tokens(24, packed.shape.vocab);
    inject({});
    EXPECT_EQ(Device(packed, Path::persistent, 256, kFaultyWalk).read_all(tokens, 8),
              Device(packed, Path::persistent, 256).read_all(tokens, 8));
}

TEST_F(GpuFaults, ASilentBlockIsCountedAtItsBarrier) {
    const gpu::DeviceWeights weights = gpu::upload(packed, 0);
    gpu::Walker walker(gpu::target_program(weights, 256, nullptr), weights,
                       {.context = 256, .kernel = &kFaultyWalk}, test::stream());
    const gpu::GpuCache cache(walker.cache());
    const gpu::Step step = first_step(cache, packed.shape.vocab);
    const uint32_t phase = index_of(walker, Op::output, 2);
    uint32_t barriers = 0;  // before it, and its own
    for (uint32_t i = 1; i <= phase; ++i) barriers += walker.phases()[i].barrier;
    inject({FaultKind::silent, phase, walker.blocks() / 2});
    EXPECT_DEATH(
        {
            walker.launch(step);
            walker.finish();
        },
        fmt::format("waited for the barrier of all blocks: {} needed, {} seen",
                    barriers * walker.blocks(), barriers * walker.blocks() - 1));
}

// One phase alone, so that nobody waits for the block but itself.
TEST_F(GpuFaults, ALostPageIsMissedByItsBlock) {
    const gpu::DeviceWeights weights = gpu::upload(packed, 0);
    gpu::Walker walker(gpu::target_program(weights, 256, nullptr), weights,
                       {.context = 256, .kernel = &kFaultyWalk}, test::stream());
    const gpu::GpuCache cache(walker.cache());
    const gpu::Step step = first_step(cache, packed.shape.vocab);
    const uint32_t phase = index_of(walker, Op::head, packed.shape.layers - 1),
                   block = walker.blocks() - 1;
    inject({FaultKind::lost_page, phase, block});
    EXPECT_DEATH(
        {
            walker.launch_phase(step, phase);
            walker.finish();
        },
        fmt::format("block {}, thread [0-9]+: waited for a page of weights", block));
}

// By the gate that compares every phase with the CPU's tiles: in the phase, and nowhere before it.
TEST_F(GpuFaults, AWrongPageIsFoundInItsPhase) {
    for (const Op op : {Op::output, Op::gate_up, Op::down, Op::head}) {
        const auto layer = static_cast<uint16_t>(op == Op::head ? packed.shape.layers - 1 : 2);
        Compared compared(packed, 8, kFaultyWalk);
        inject({});
        compared.step(0, 1e-2);
        inject({FaultKind::wrong_page, index_of(compared.walker(), op, layer),
                compared.walker().blocks() - 1});
        EXPECT_NONFATAL_FAILURE(compared.step(8, 1e-2),
                                fmt::format("{} of layer {}", op_name(op), layer));
    }
}

// By the gate that holds the two paths against each other, bit for bit.
TEST_F(GpuFaults, AWrongPagePartsThePaths) {
    const auto tokens = seeded_tokens(24, packed.shape.vocab);
    Device device(packed, Path::persistent, 256, kFaultyWalk);
    inject({FaultKind::wrong_page, index_of(device.walker(), Op::down, 2),
            device.walker().blocks() - 1});
    EXPECT_NE(device.read_all(tokens, 8), Device(packed, Path::graph, 256).read_all(tokens, 8));
}

}  // namespace
}  // namespace tessera
