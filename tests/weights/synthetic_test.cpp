// Random weights: decided by the seed, laid out as a checkpoint's are, and of ordinary size.
#include "weights/synthetic.h"

#include <cmath>
#include <cstring>

#include <gtest/gtest.h>

#include "weights/pack.h"

#include "support/seeded.h"
#include "support/toys.h"

namespace tessera {
namespace {

struct Kind {
    const char* name;
    Json changes;
};
const Json kFp8 = {
    {"quantization_config", {{"store_dtype", nullptr}, {"ignored_layers", nullptr}}}};

std::vector<Kind> kinds() {
    Json wide = kFp8;
    wide.update({{"moe_intermediate_size", 8192}, {"n_routed_experts", 3}});
    return {{"MXFP4 experts", Json::object()},
            {"FP8", kFp8},
            {"FP8, experts wider than all else", wide},
            {"bf16", {{"quantization_config", nullptr}}},
            {"q, k and v apart",
             {{"model_type", "mimo_v2_flash"}, {"attention_projection_layout", nullptr}}},
            {"no expert", {{"moe_layer_freq", {0, 0, 0, 0}}}}};
}

PackedWeights pack(const Weights& weights, uint32_t ranks) {
    return pack_weights(weights, {.ranks = ranks, .threads = 1, .progress = {}, .drop = {}});
}

// Calls each(what, a's, b's) for every matrix of two packed ranks of one shape.
template <typename Each>
void each_packed(const PackedRank& a, const PackedRank& b, Each each) {
    each("head", a.head, b.head);
    ASSERT_EQ(a.layers.size(), b.layers.size());
    for (size_t i = 0; i < a.layers.size(); ++i) {
        const PackedLayer &x = a.layers[i], &y = b.layers[i];
        SCOPED_TRACE(testing::Message() << "layer " << i);
        each("qkv", x.qkv, y.qkv);
        each("o", x.o, y.o);
        each("gate and up", x.dense.gate_up, y.dense.gate_up);
        each("down", x.dense.down, y.dense.down);
        each("router", x.router, y.router);
        ASSERT_EQ(x.experts.size(), y.experts.size());
        for (size_t e = 0; e < x.experts.size(); ++e) {
            each("an expert's gate and up", x.experts[e].gate_up, y.experts[e].gate_up);
            each("an expert's down", x.experts[e].down, y.experts[e].down);
        }
    }
}

bool same_bytes(const PackedMatrix& a, const PackedMatrix& b) {
    if (a.bytes() == 0 || b.bytes() == 0) return a.bytes() == b.bytes();  // memcmp wants no null
    return a.bytes() == b.bytes() && std::memcmp(a.data, b.data, a.bytes()) == 0;
}

TEST(SyntheticWeights, ArePackedAsACheckpointIs) {
    for (const Kind& kind : kinds()) {
        SCOPED_TRACE(kind.name);
        const Shape shape = test::toy_shape(kind.changes);
        const SyntheticWeights made(shape, 1);
        const test::SeededCheckpoint seeded = test::seeded_checkpoint(shape, 1);
        const Weights real = bind(seeded.checkpoint, shape);
        for (const uint32_t ranks : {1u, 2u}) {
            EXPECT_EQ(packed_bytes(made.weights(), ranks), packed_bytes(real, ranks));
            const PackedWeights a = pack(made.weights(), ranks), b = pack(real, ranks);
            EXPECT_EQ(a.embedding.size(), b.embedding.size());
            for (uint32_t rank = 0; rank < ranks; ++rank) {
                const PackedRank &x = a.ranks[rank], &y = b.ranks[rank];
                EXPECT_EQ(x.arena.bytes(), y.arena.bytes());
                EXPECT_EQ(x.norm.size(), y.norm.size());
                for (uint32_t i = 0; i < shape.layers; ++i) {
                    EXPECT_EQ(x.layers[i].input_norm.size(), y.layers[i].input_norm.size());
                    EXPECT_EQ(x.layers[i].post_norm.size(), y.layers[i].post_norm.size());
                    EXPECT_EQ(x.layers[i].sink.size(), y.layers[i].sink.size());
                    EXPECT_EQ(x.layers[i].correction_bias.size(),
                              y.layers[i].correction_bias.size());
                }
                each_packed(x, y, [](const char* what, const auto& m, const auto& n) {
                    EXPECT_EQ(m.format, n.format) << what;
                    EXPECT_EQ(m.rows, n.rows) << what;
                    EXPECT_EQ(m.columns, n.columns) << what;
                });
            }
        }
    }
}

// What traffic says of a shape, small vectors but for norms left out.
TEST(SyntheticWeights, CountTheirBytesAsACheckpointDoes) {
    for (const Kind& kind : kinds()) {
        const Shape shape = test::toy_shape(kind.changes);
        const test::SeededCheckpoint seeded = test::seeded_checkpoint(shape, 1);
        const auto real = static_cast<double>(bind(seeded.checkpoint, shape).bytes);
        EXPECT_NEAR(static_cast<double>(SyntheticWeights(shape, 1).weights().bytes), real,
                    0.01 * real)
            << kind.name;
    }
}

TEST(SyntheticWeights, AreDecidedByTheSeed) {
    for (const Kind& kind : kinds()) {
        SCOPED_TRACE(kind.name);
        const Shape shape = test::toy_shape(kind.changes);
        const PackedWeights first = pack(SyntheticWeights(shape, 1).weights(), 1);
        const PackedWeights again = pack(SyntheticWeights(shape, 1).weights(), 1);
        const PackedWeights other = pack(SyntheticWeights(shape, 2).weights(), 1);
        const size_t embedding = first.embedding.size_bytes();
        EXPECT_EQ(std::memcmp(first.embedding.data(), again.embedding.data(), embedding), 0);
        EXPECT_NE(std::memcmp(first.embedding.data(), other.embedding.data(), embedding), 0);
        each_packed(first.ranks[0], again.ranks[0],
                    [](const char* what, const PackedMatrix& a, const PackedMatrix& b) {
                        EXPECT_TRUE(same_bytes(a, b)) << what;
                    });
        each_packed(first.ranks[0], other.ranks[0],
                    [](const char* what, const PackedMatrix& a, const PackedMatrix& b) {
                        EXPECT_TRUE(a.bytes() == 0 || !same_bytes(a, b)) << what;
                    });
    }
}

// A row of unit size stays about one under every matrix: root mean square near hidden^-1/2.
TEST(SyntheticWeights, KeepAForwardPassInOrdinaryNumbers) {
    for (const Kind& kind : kinds()) {
        SCOPED_TRACE(kind.name);
        const Shape shape = test::toy_shape(kind.changes);
        const SyntheticWeights made(shape, 1);
        const double size = 1 / std::sqrt(1.0 * shape.hidden);
        const auto expect_ordinary = [&](const Matrix& m, const char* what) {
            double squares = 0, largest = 0;
            std::vector<float> row(m.columns);
            for (uint32_t r = 0; r < m.rows; ++r) {
                dequantize_row(m, r, row);
                for (const float value : row) {
                    ASSERT_TRUE(std::isfinite(value)) << what;
                    squares += double{value} * value;
                    largest = std::max(largest, std::abs(double{value}));
                }
            }
            const double rms = std::sqrt(squares / (1.0 * m.rows * m.columns));
            EXPECT_GT(rms, 0.5 * size) << what;
            EXPECT_LT(rms, 2 * size) << what;
            EXPECT_LT(largest, 8 * size) << what;
        };
        const auto expect_feed_forward = [&](const FeedForward& f, const char* what) {
            for (const Matrix* m : {&f.gate, &f.up, &f.down}) expect_ordinary(*m, what);
        };
        const Weights& w = made.weights();
        expect_ordinary(w.embedding, "embedding");
        expect_ordinary(w.head, "head");
        for (uint32_t i = 0; i < shape.layers; ++i) {
            const LayerWeights& layer = w.layers[i];
            for (const Matrix* m : {&layer.q, &layer.k, &layer.v, &layer.o})
                expect_ordinary(*m, "attention");
            if (shape.is_moe[i]) {
                expect_ordinary(layer.router, "router");
                for (const FeedForward& expert : layer.experts)
                    expect_feed_forward(expert, "expert");
            } else {
                expect_feed_forward(layer.dense, "dense");
            }
        }
    }
}

// One expert is not another: reading them must come from memory, and routing must choose.
TEST(SyntheticWeights, GiveEveryExpertItsOwn) {
    const Shape shape = test::toy_shape();
    const PackedWeights packed = pack(SyntheticWeights(shape, 1).weights(), 1);
    const auto& experts = packed.ranks[0].layers[1].experts;
    for (size_t a = 0; a < experts.size(); ++a)
        for (size_t b = 0; b < a; ++b)
            EXPECT_FALSE(same_bytes(experts[a].gate_up, experts[b].gate_up)) << a << " and " << b;
}

}  // namespace
}  // namespace tessera
