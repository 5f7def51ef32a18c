// What was packed, multiplied by one activation after the other, is what the checkpoint holds:
// every matrix of every rank, row by row in the order that is written here a second time. The ranks
// together have the whole model.
#include "weights/pack.h"

#include <map>
#include <mutex>
#include <set>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tiles/kernels.h"

#include "support/published.h"
#include "support/seeded.h"
#include "support/toys.h"

namespace tessera {
namespace {

using test::splitmix64;

// ------------------------------------------------------------------------------- toys

// Three layers: dense that sees all, two of experts, of which the first slides.
Shape small(const Json& changes = Json::object()) {
    Json config = {{"num_hidden_layers", 3},      {"hybrid_layer_pattern", {0, 1, 0}},
                   {"moe_layer_freq", {0, 1, 1}}, {"n_routed_experts", 3},
                   {"num_experts_per_tok", 2},    {"vocab_size", 83}};
    config.update(changes);
    return test::toy_shape(config);
}

// A seeded checkpoint whose fp8 scales are no powers of two: a product with one rounds.
struct Toy {
    explicit Toy(const Shape& shape) : made(test::seeded_checkpoint(shape, 7)) {
        for (auto& [name, tensor] : made.checkpoint.tensors) {
            if (!name.ends_with("weight_scale_inv")) continue;
            auto* const at = const_cast<std::byte*>(tensor.bytes.data());
            for (uint64_t i = 0; i < tensor.bytes.size() / 4; ++i) {
                const auto draw = static_cast<float>(splitmix64(test::fnv1a64(name), i) >> 40);
                const float scale = 0x1p-10f * (1 + draw * 0x1p-24f);
                std::memcpy(at + 4 * i, &scale, 4);
            }
        }
        weights = bind(made.checkpoint, shape);
    }

    test::SeededCheckpoint made;
    Weights weights;
};

PackedWeights pack(const Weights& weights, uint32_t ranks = 1, uint32_t threads = 1) {
    return pack_weights(
        weights,
        {.ranks = ranks, .threads = threads, .progress = {}, .drop = {}, .fp8 = Fp8::keep});
}

const Json kAllBf16 = {{"quantization_config", nullptr}};
const Json kAllFp8 = {
    {"quantization_config", {{"store_dtype", nullptr}, {"ignored_layers", nullptr}}}};
const Json kSeparate = {{"model_type", "mimo_v2_flash"}, {"attention_projection_layout", nullptr}};

Json both(Json a, const Json& b) {
    a.update(b);
    return a;
}

// ------------------------------------------------------------------------------- reading back

// The packed matrix by rows: each column is what an activation of one there, and zeros elsewhere,
// gives. Integers for mxfp4: the code 1 of scale 1.
std::vector<std::vector<float>> unpacked(const PackedMatrix& m) {
    constexpr uint32_t kAtOnce = 8;
    const Kernels& k = *find_kernels(Isa::portable);
    const uint32_t width = m.panels() * kPanelColumns, stride = m.units() * kUnitRows;
    std::vector<std::vector<float>> rows(stride, std::vector<float>(width));
    std::vector<float> out(size_t{kAtOnce} * stride);
    for (uint32_t begin = 0; begin < width; begin += kAtOnce) {
        if (m.format == Format::mxfp4) {
            std::vector<std::vector<Int16Block>> x(kAtOnce,
                                                   std::vector<Int16Block>(width / kMxBlock));
            std::vector<const Int16Block*> at;
            for (uint32_t i = 0; i < kAtOnce; ++i) {
                Int16Block& block = x[i][(begin + i) / kMxBlock];
                block.low[(begin + i) % kMxBlock / 8 * 8 + kBlockOrder[(begin + i) % 8]] = 1;
                block.scale = 0.5f;
                block.balance = -12;
                at.push_back(x[i].data());
            }
            k.multiply_int16(m.data, m.units(), m.panels(), {at.data(), kAtOnce}, out.data(),
                             stride);
        } else {
            std::vector<std::vector<float>> x(kAtOnce, std::vector<float>(width));
            std::vector<const float*> at;
            for (uint32_t i = 0; i < kAtOnce; ++i) {
                x[i][begin + i] = 1;
                at.push_back(x[i].data());
            }
            k.multiply(m.format, m.data, m.units(), m.panels(), {at.data(), kAtOnce}, out.data(),
                       stride);
        }
        for (uint32_t i = 0; i < kAtOnce; ++i)
            for (uint32_t row = 0; row < stride; ++row)
                rows[row][begin + i] = out[size_t{i} * stride + row];
    }
    return rows;
}

// Where a packed row comes from; null: zeros.
struct From {
    const Matrix* matrix;
    uint32_t row;

    auto operator<=>(const From&) const = default;
};

// As the model has it, and for fp8 before that is rounded to bf16.
std::vector<float> published_row(const From& from) {
    std::vector<float> values(from.matrix->columns);
    dequantize_row(*from.matrix, from.row, values);
    return values;
}
std::vector<float> unrounded_fp8_row(const From& from) {
    const Matrix& m = *from.matrix;
    std::vector<float> values(m.columns);
    const uint64_t blocks = (m.columns + 127) / 128;
    for (uint32_t c = 0; c < m.columns; ++c) {
        float scale;
        std::memcpy(&scale, m.scales + 4 * (m.scale_row(from.row) * blocks + c / 128), 4);
        values[c] =
            e4m3_to_float(static_cast<uint8_t>(m.data[m.stored_row(from.row) * m.columns + c])) *
            scale;
    }
    return values;
}

void expect_matrix(const PackedMatrix& packed, const std::vector<From>& from, uint32_t columns,
                   uint32_t column_begin, const std::string& what) {
    SCOPED_TRACE(what);
    ASSERT_EQ(packed.rows, from.size());
    ASSERT_EQ(packed.columns, columns);
    const auto rows = unpacked(packed);
    uint32_t rounded = 0;
    for (uint32_t r = 0; r < rows.size(); ++r) {
        std::vector<float> expected(rows[r].size());
        if (r < from.size() && from[r].matrix != nullptr) {
            const auto published = published_row(from[r]);
            const auto exact =
                packed.format == Format::fp8 ? unrounded_fp8_row(from[r]) : published;
            for (uint32_t c = 0; c < columns; ++c) {
                expected[c] = exact[column_begin + c];
                // The documented difference: the product with its scale is not rounded.
                ASSERT_EQ(round_bf16(expected[c]), round_bf16(published[column_begin + c]));
                if (expected[c] != published[column_begin + c]) ++rounded;
            }
        }
        ASSERT_EQ(rows[r], expected) << "packed row " << r;
    }
    if (packed.format == Format::fp8) {
        EXPECT_GT(rounded, 0u) << "scales that round nothing";
    }
}

// ------------------------------------------------------------------------------- what is expected

std::vector<From> some_rows(const Matrix& m, uint32_t begin, uint32_t end) {
    std::vector<From> rows;
    for (uint32_t row = begin; row < end; ++row) rows.push_back({&m, row});
    return rows;
}

// Heads [begin, end) of q or k: of the dims that turn, one of the first half, its partner of the
// second, and so on; then the others.
void add_heads(std::vector<From>& rows, const Matrix& m, uint32_t begin, uint32_t end, uint32_t dim,
               uint32_t rotary) {
    for (uint32_t head = begin; head < end; ++head) {
        for (uint32_t i = 0; i < rotary / 2; ++i) {
            rows.push_back({&m, head * dim + i});
            rows.push_back({&m, head * dim + i + rotary / 2});
        }
        for (uint32_t d = rotary; d < dim; ++d) rows.push_back({&m, head * dim + d});
    }
}

std::vector<From> gate_up_rows(const FeedForward& f, uint32_t begin, uint32_t end) {
    std::vector<From> rows;
    for (; begin < end; begin += 16) {
        for (const Matrix* m : {&f.gate, &f.up})
            for (uint32_t i = begin; i < begin + 16; ++i)
                rows.push_back(i < end ? From{m, i} : From{nullptr, 0});
    }
    return rows;
}

// How often each row (of a down or output projection: each column) was given to some rank.
class Whole {
  public:
    void rows(const std::vector<From>& from) {
        for (const From& row : from)
            if (row.matrix != nullptr) ++times_[row];
    }
    void columns(const Matrix& m, uint32_t begin, uint32_t end) {
        for (uint32_t c = begin; c < end; ++c) ++times_[{&m, c}];
    }
    void expect(const Matrix& m, uint32_t count, uint32_t times, const std::string& what) const {
        for (uint32_t i = 0; i < count; ++i) {
            const auto found = times_.find({&m, i});
            ASSERT_EQ(found == times_.end() ? 0 : found->second, times) << what << ", " << i;
        }
    }

  private:
    std::map<From, uint32_t> times_;
};

void expect_feed_forward(const PackedFeedForward& packed, const FeedForward& in, uint32_t rank,
                         uint32_t ranks, Whole& whole, const std::string& what) {
    const uint32_t width = in.gate.rows / ranks, begin = width * rank;
    const auto rows = gate_up_rows(in, begin, begin + width);
    expect_matrix(packed.gate_up, rows, in.gate.columns, 0, what + " gate_up");
    expect_matrix(packed.down, some_rows(in.down, 0, in.down.rows), width, begin, what + " down");
    whole.rows(rows);
    whole.columns(in.down, begin, begin + width);
}

void expect_vector(std::span<const float> packed, std::span<const float> expected) {
    EXPECT_TRUE(std::ranges::equal(packed, expected));
}

// Everything that pack_weights gives for so many ranks.
void expect_packed(const Weights& weights, uint32_t ranks) {
    const Shape& s = weights.shape;
    const PackedWeights packed = pack(weights, ranks, 2);
    ASSERT_EQ(packed.ranks.size(), ranks);
    Whole whole;
    for (uint32_t rank = 0; rank < ranks; ++rank) {
        SCOPED_TRACE(fmt::format("rank {} of {}", rank, ranks));
        const PackedRank& out = packed.ranks[rank];
        for (uint32_t i = 0; i < s.layers; ++i) {
            const LayerWeights& in = weights.layers[i];
            const PackedLayer& layer = out.layers[i];
            const AttentionShape& a = s.attention(i);
            const std::string at = fmt::format("layer {}", i);
            const uint32_t heads = a.heads / ranks, head = heads * rank;
            const uint32_t kv = std::max(1u, a.kv_heads / ranks),
                           kv_head = a.kv_heads * rank / ranks;
            std::vector<From> rows;
            add_heads(rows, in.q, head, head + heads, a.head_dim, a.rotary_dims);
            add_heads(rows, in.k, kv_head, kv_head + kv, a.head_dim, a.rotary_dims);
            for (const From& row :
                 some_rows(in.v, kv_head * a.v_head_dim, (kv_head + kv) * a.v_head_dim))
                rows.push_back(row);
            whole.rows(rows);
            expect_matrix(layer.qkv, rows, s.hidden, 0, at + " qkv");
            const uint32_t mixed = heads * a.v_head_dim;
            expect_matrix(layer.o, some_rows(in.o, 0, s.hidden), mixed, mixed * rank, at + " o");
            whole.columns(in.o, mixed * rank, mixed * (rank + 1));

            expect_vector(layer.input_norm, in.input_norm);
            expect_vector(layer.post_norm, in.post_norm);
            if (a.sink) {
                expect_vector(layer.sink, std::span(in.sink).subspan(head, heads));
            } else {
                EXPECT_TRUE(layer.sink.empty());
            }
            if (!s.is_moe[i]) {
                expect_feed_forward(layer.dense, in.dense, rank, ranks, whole, at);
                continue;
            }
            expect_matrix(layer.router, some_rows(in.router, 0, s.experts), s.hidden, 0,
                          at + " router");
            expect_vector(layer.correction_bias, in.correction_bias);
            ASSERT_EQ(layer.experts.size(), s.experts);
            for (uint32_t e = 0; e < s.experts; ++e)
                expect_feed_forward(layer.experts[e], in.experts[e], rank, ranks, whole,
                                    fmt::format("{} expert {}", at, e));
        }
        expect_vector(out.norm, weights.norm);
        const auto vocab = some_rows(weights.head, out.vocab.begin, out.vocab.end);
        expect_matrix(out.head, vocab, s.hidden, 0, "head");
        whole.rows(vocab);
    }

    for (uint32_t i = 0; i < s.layers; ++i) {
        const LayerWeights& in = weights.layers[i];
        const AttentionShape& a = s.attention(i);
        const uint32_t copies = std::max(1u, ranks / a.kv_heads);  // of a kv head
        whole.expect(in.q, in.q.rows, 1, "q");
        whole.expect(in.k, in.k.rows, copies, "k");
        whole.expect(in.v, in.v.rows, copies, "v");
        whole.expect(in.o, in.o.columns, 1, "o");
        std::vector<const FeedForward*> all = {&in.dense};
        if (s.is_moe[i]) {
            all.clear();
            for (const FeedForward& expert : in.experts) all.push_back(&expert);
        }
        for (const FeedForward* f : all) {
            whole.expect(f->gate, f->gate.rows, 1, "gate");
            whole.expect(f->up, f->up.rows, 1, "up");
            whole.expect(f->down, f->down.columns, 1, "down");
        }
    }
    whole.expect(weights.head, weights.head.rows, 1, "head");

    ASSERT_EQ(packed.embedding.size(), size_t{s.vocab} * s.hidden);
    for (uint32_t row = 0; row < s.vocab; ++row) {
        const auto expected = published_row({&weights.embedding, row});
        for (uint32_t c = 0; c < s.hidden; ++c)
            ASSERT_EQ(to_float(packed.embedding[size_t{row} * s.hidden + c]), expected[c]);
    }
}

// ------------------------------------------------------------------------------- the tests

TEST(Pack, MultipliesAsPublishedOnAnyNumberOfRanks) {
    const Toy toy(small());  // fused fp8 chunks, bf16 o_proj, mxfp4 experts
    EXPECT_EQ(toy.weights.layers[0].q.format, Format::fp8);
    EXPECT_EQ(toy.weights.layers[1].experts[0].gate.format, Format::mxfp4);
    for (const uint32_t ranks : kRankCounts) expect_packed(toy.weights, ranks);
}

TEST(Pack, MultipliesAsPublishedInEveryFormat) {
    for (const auto& [what, changes] : std::vector<std::pair<const char*, Json>>{
             {"all bf16", kAllBf16},
             {"all fp8", kAllFp8},
             {"separate q, k, v", both(kSeparate, kAllFp8)},
             {"separate q, k, v in bf16", both(kSeparate, kAllBf16)}}) {
        SCOPED_TRACE(what);
        const Toy toy(small(changes));
        for (const uint32_t ranks : {1u, 2u}) expect_packed(toy.weights, ranks);
    }
}

// Chunks of more than one block of 128 rows, of whose scales the last covers a rest: 4 heads of 48
// and their k and v make 272 rows.
TEST(Pack, FollowsScalesThatRestartInEveryChunk) {
    const Toy toy(small({{"head_dim", 48}, {"swa_head_dim", 48}, {"v_head_dim", 32}}));
    const Matrix& v = toy.weights.layers[0].v;
    ASSERT_GT(v.chunk_rows, 256u);
    ASSERT_NE(v.chunk_rows % kFp8Block, 0u);
    for (const uint32_t ranks : {1u, 2u, 8u}) expect_packed(toy.weights, ranks);
}

TEST(Pack, WidthsOfNoWholeUnitArePaddedWithZeros) {
    for (const Json& format : {kAllBf16, kAllFp8}) {
        const Toy toy(
            small(both(format, {{"intermediate_size", 200}, {"moe_intermediate_size", 41}})));
        expect_packed(toy.weights, 1);
        const PackedWeights packed = pack(toy.weights);
        EXPECT_EQ(packed.ranks[0].layers[0].dense.gate_up.rows, 2 * 208u);
        EXPECT_EQ(packed.ranks[0].layers[1].experts[0].gate_up.rows, 2 * 48u);
    }
}

TEST(Pack, HeadsOfNoWholeUnitAndColumnsOfNoWholePanel) {
    const Toy toy(small(
        both(kAllBf16,
             {{"hidden_size", 131}, {"head_dim", 26}, {"swa_head_dim", 26}, {"v_head_dim", 5}})));
    for (const uint32_t ranks : {1u, 4u}) expect_packed(toy.weights, ranks);
}

// q, k and v that differ in format are all rounded to bf16, as the model rounds them.
TEST(Pack, PartsOfDifferentFormatsBecomeBf16) {
    const Toy toy(small(both(kSeparate, kAllFp8)));
    const Toy plain(small(both(kSeparate, kAllBf16)));
    Weights mixed = toy.weights;
    mixed.layers[0].k = plain.weights.layers[0].k;
    mixed.layers[1].q = plain.weights.layers[1].q;
    mixed.layers[1].experts[2].up = plain.weights.layers[1].experts[2].up;
    const PackedWeights packed = pack(mixed);
    EXPECT_EQ(packed.ranks[0].layers[0].qkv.format, Format::bf16);
    EXPECT_EQ(packed.ranks[0].layers[1].qkv.format, Format::bf16);
    EXPECT_EQ(packed.ranks[0].layers[2].qkv.format, Format::fp8);
    EXPECT_EQ(packed.ranks[0].layers[1].experts[2].gate_up.format, Format::bf16);
    EXPECT_EQ(packed.ranks[0].layers[1].experts[2].down.format, Format::fp8);
    for (const uint32_t ranks : {1u, 2u}) expect_packed(mixed, ranks);
}

// A rank whose columns begin inside a scale's block of 128 gets bf16.
TEST(Pack, SlicesThatCutAScaleBlockBecomeBf16) {
    const Toy toy(small(kAllFp8));
    const PackedWeights packed = pack(toy.weights, 4);
    for (uint32_t rank = 0; rank < 4; ++rank) {
        const PackedLayer& layer = packed.ranks[rank].layers[0];
        EXPECT_EQ(layer.o.format, rank == 0 ? Format::fp8 : Format::bf16);  // 32 columns each
        EXPECT_EQ(layer.dense.down.format, rank % 2 == 0 ? Format::fp8 : Format::bf16);  // 64
        EXPECT_EQ(layer.qkv.format, Format::fp8);
    }
    expect_packed(toy.weights, 4);
}

// What the published model rounds fp8 weights to, bit for bit, where that is asked for.
TEST(Pack, UnpacksFp8IntoBf16) {
    const Toy toy(small(kAllFp8));
    PackOptions options;
    options.fp8 = Fp8::unpack;
    const PackedWeights packed = pack_weights(toy.weights, options);
    EXPECT_EQ(packed_bytes(toy.weights, 1, Fp8::unpack), packed.bytes());
    EXPECT_GT(packed.bytes(), pack(toy.weights).bytes());
    const PackedLayer& layer = packed.ranks[0].layers[1];
    EXPECT_EQ(layer.qkv.format, Format::bf16);
    EXPECT_EQ(layer.experts[0].down.format, Format::bf16);
    const std::vector<std::vector<float>> rows = unpacked(layer.o);
    for (uint32_t row = 0; row < layer.o.rows; ++row) {
        const std::vector<float> expected = published_row({&toy.weights.layers[1].o, row});
        EXPECT_TRUE(std::ranges::equal(std::span(rows[row]).first(expected.size()), expected));
    }
    // A toy fits any cache; a model that does not keeps its format.
    options.fp8 = Fp8::unpack_in_cache;
    EXPECT_EQ(pack_weights(toy.weights, options).bytes(), packed.bytes());
}

TEST(Pack, RotaryDimsStandInPairs) {
    const Toy toy(small());  // 8 of 24 dims turn
    const auto rows = unpacked(pack(toy.weights).ranks[0].layers[0].qkv);
    constexpr uint32_t kOrder[24] = {0,  4,  1,  5,  2,  6,  3,  7,  8,  9,  10, 11,
                                     12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23};
    for (uint32_t head = 0; head < 2; ++head) {
        for (uint32_t d = 0; d < 24; ++d) {
            auto expected = unrounded_fp8_row({&toy.weights.layers[0].q, head * 24 + kOrder[d]});
            expected.resize(rows[0].size());
            EXPECT_EQ(rows[head * 24 + d], expected) << "head " << head << ", dim " << d;
        }
    }
}

TEST(PackUnit, RowsThatAreNotThereAreZeros) {
    const Toy toy(small());
    for (const Matrix* m :
         {&toy.weights.layers[0].q, &toy.weights.layers[0].o,
          &toy.weights.layers[1].experts[1].down, &toy.weights.layers[1].router}) {
        PackedMatrix packed{m->format, 5, m->columns, nullptr};
        std::vector<std::byte> bytes(packed.bytes(), std::byte{0xab});
        packed.data = bytes.data();
        const std::vector<SourceRow> rows = {{m, 1}, {}, {m, 0}, {m, m->rows - 1}, {}};
        pack_unit(rows, m->format, 0, m->columns, bytes.data());
        expect_matrix(packed, {{m, 1}, {nullptr, 0}, {m, 0}, {m, m->rows - 1}, {nullptr, 0}},
                      m->columns, 0, "unit");
    }
}

// ------------------------------------------------------------------------------- bytes

uint64_t lines(uint64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

// Of all that a rank's views point at, each in whole cache lines.
uint64_t viewed_bytes(const PackedRank& rank, const Shape& s) {
    uint64_t bytes = 0;
    const auto matrix = [&](const PackedMatrix& m) { bytes += lines(m.bytes()); };
    const auto vector = [&](std::span<const float> v) { bytes += lines(v.size_bytes()); };
    for (uint32_t i = 0; i < s.layers; ++i) {
        const PackedLayer& layer = rank.layers[i];
        matrix(layer.qkv);
        matrix(layer.o);
        matrix(layer.router);
        matrix(layer.dense.gate_up);
        matrix(layer.dense.down);
        for (const PackedFeedForward& expert : layer.experts) {
            matrix(expert.gate_up);
            matrix(expert.down);
        }
        for (const auto v : {layer.input_norm, layer.post_norm, layer.sink, layer.correction_bias})
            vector(v);
    }
    matrix(rank.head);
    vector(rank.norm);
    return bytes;
}

TEST(Pack, TakesTheBytesThatWereForetold) {
    for (const Json& changes : {Json::object(), kAllBf16, both(kSeparate, kAllFp8)}) {
        const Toy toy(small(changes));
        for (const uint32_t ranks : kRankCounts) {
            const PackedWeights packed = pack(toy.weights, ranks);
            EXPECT_EQ(packed_bytes(toy.weights, ranks), packed.bytes());
            uint64_t viewed = lines(packed.embedding.size_bytes());
            for (const PackedRank& rank : packed.ranks) viewed += viewed_bytes(rank, packed.shape);
            // Room for sinks is for all heads, on every rank.
            EXPECT_GE(packed.bytes(), viewed);
            EXPECT_LE(packed.bytes(), viewed + uint64_t{64} * ranks * packed.shape.layers);
        }
    }
}

TEST(Pack, DoesNotDependOnThreads) {
    const Toy toy(small());
    const PackedWeights one = pack(toy.weights, 2, 1), many = pack(toy.weights, 2, 5);
    for (uint32_t rank = 0; rank < 2; ++rank) {
        const Arena &a = one.ranks[rank].arena, &b = many.ranks[rank].arena;
        ASSERT_EQ(a.bytes(), b.bytes());
        EXPECT_EQ(std::memcmp(a.data(), b.data(), a.bytes()), 0);
    }
}

TEST(Pack, ReportsProgressUpToTheTotal) {
    const Toy toy(small());
    for (const uint32_t threads : {1u, 3u}) {
        uint64_t last = 0, calls = 0, total_told = 0;
        const PackedWeights packed =
            pack_weights(toy.weights, {.ranks = 2,
                                       .threads = threads,
                                       .progress =
                                           [&](uint64_t done, uint64_t total) {
                                               EXPECT_LE(done, total);
                                               last = done;
                                               total_told = total;
                                               ++calls;
                                           },
                                       .drop = {}});
        uint64_t matrices = 0;
        for (const PackedRank& rank : packed.ranks) {
            matrices += rank.head.bytes();
            for (const PackedLayer& layer : rank.layers) {
                matrices += layer.qkv.bytes() + layer.o.bytes() + layer.router.bytes() +
                            layer.dense.gate_up.bytes() + layer.dense.down.bytes();
                for (const PackedFeedForward& expert : layer.experts)
                    matrices += expert.gate_up.bytes() + expert.down.bytes();
            }
        }
        EXPECT_EQ(last, total_told);
        EXPECT_EQ(total_told, matrices);
        if (threads == 1) {
            EXPECT_GT(calls, 20u);
        }
    }
}

// ------------------------------------------------------------------------------- letting go

TEST(Pack, DropsWhatItHasReadOfTheSourceAndNothingElse) {
    const Toy toy(small());
    for (const uint32_t ranks : {1u, 2u}) {
        std::mutex adding;
        std::vector<std::span<const std::byte>> dropped;
        pack_weights(toy.weights, {.ranks = ranks,
                                   .threads = 2,
                                   .progress = {},
                                   .drop = [&](std::span<const std::byte> bytes) {
                                       const std::lock_guard lock(adding);
                                       dropped.push_back(bytes);
                                   }});
        std::set<const std::byte*> tensors;
        for (const auto& bytes : dropped) {
            const bool inside =
                std::ranges::any_of(toy.made.checkpoint.tensors, [&](const auto& named) {
                    const auto tensor = named.second.bytes;
                    const bool is = bytes.data() >= tensor.data() &&
                                    bytes.data() + bytes.size() <= tensor.data() + tensor.size();
                    if (is) tensors.insert(tensor.data());
                    return is;
                });
            EXPECT_TRUE(inside);
        }
        for (const auto& [name, tensor] : toy.made.checkpoint.tensors) {
            // Vectors were copied when they were bound.
            EXPECT_EQ(tensors.contains(tensor.bytes.data()), tensor.shape.size() == 2) << name;
        }
    }
}

// Bytes that were dropped are gone: what is packed later must not need them.
void expect_drop_is_final(uint32_t ranks) {
    const Toy toy(small());
    const PackedWeights expected = pack(toy.weights, ranks);
    const PackedWeights packed = pack_weights(
        toy.weights, {.ranks = ranks,
                      .threads = 1,
                      .progress = {},
                      .drop = [](std::span<const std::byte> bytes) {
                          std::memset(const_cast<std::byte*>(bytes.data()), 0x55, bytes.size());
                      }});
    for (uint32_t rank = 0; rank < ranks; ++rank) {
        const Arena &a = expected.ranks[rank].arena, &b = packed.ranks[rank].arena;
        EXPECT_EQ(std::memcmp(a.data(), b.data(), a.bytes()), 0) << "rank " << rank;
    }
}

// Not even for other ranks: pages of which one rank has read its share are wanted by the next.
TEST(Pack, NeedsNothingThatItDroppedAgain) {
    for (const uint32_t ranks : {1u, 2u, 8u}) expect_drop_is_final(ranks);
}

}  // namespace
}  // namespace tessera
