// Other interleavings: turns and bulk copies in orders that seeds make, on cards of one
// multiprocessor and more. No bit may depend on the order.
#include <gtest/gtest.h>

#include "gpu/emulated/card.h"
#include "gpu/support.h"
#include "gpu/writing.h"

namespace tessera {
namespace {

using emulated::settings;
using test::Device;
using test::seeded_tokens;
using test::Toy;

class Orders : public testing::Test {
  protected:
    void TearDown() override { settings() = {}; }
};

TEST_F(Orders, ChangeNoBitOfAStep) {
    const Toy toy(test::toy_shape(test::kShapes[0].second));
    const PackedWeights packed = toy.pack();
    const auto tokens = seeded_tokens(13, packed.shape.vocab);
    for (const uint32_t multiprocessors : {1u, 2u, 5u}) {
        settings() = {};
        settings().multiprocessors = multiprocessors;
        Device graph(packed, gpu::Path::graph, 256);
        const auto expected = graph.read_all(tokens, 8);
        // As few places for pages as there can be: each has many turns. (With a ring as deep as a
        // card's, warps that trust a place's parity alone are not found here.)
        settings().shared_bytes = graph.walker().network().shared.ring + 3 * (gpu::kPageBytes + 16);
        for (uint64_t seed = 1; seed <= 3; ++seed) {
            settings().seed = seed * 10 + multiprocessors;
            Device device(packed, gpu::Path::persistent, 256);
            EXPECT_EQ(device.walker().ring_pages(), 3u);
            EXPECT_EQ(device.read_all(tokens, 8), expected)
                << multiprocessors << " multiprocessors, seed " << settings().seed;
        }
    }
}

TEST_F(Orders, ChangeNoTokenOfRounds) {
    const test::Pair pair;
    RoundsAsk ask;
    ask.temperature = 0.8f;
    ask.seed = 5;
    ask.drafts = 5;
    ask.tokens_max = 6;
    ask.context = test::kWritingContext;
    const auto text = [&] {
        auto written = test::Writing(pair).in_rounds(ask, 6);
        written.resize(11 + 6);
        return written;
    };
    settings().multiprocessors = 4;
    const auto expected = text();
    for (uint64_t seed = 1; seed <= 3; ++seed) {
        settings().seed = seed;
        EXPECT_EQ(text(), expected) << seed;
    }
}

}  // namespace
}  // namespace tessera
