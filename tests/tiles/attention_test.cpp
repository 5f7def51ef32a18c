// Attention by chunks and their merging, of every instruction set, against one plain softmax in
// double. Queries and keys are small integers, so that scores are exact and what is compared is the
// softmax. Whatever a row may not see is NaN.
#include <limits>

#include <gtest/gtest.h>

#include "tiles/support.h"

namespace tessera {
namespace {

using test::bits_of;
using test::Draw;

class AttentionKernels : public test::EachIsa {};

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
    const char* what;
    uint32_t heads, head_dim, v_head_dim;
    uint32_t ring;         // positions
    uint32_t first, last;  // seen
    float scale = 0x1p-5f;
    std::vector<float> sinks = {};  // by head, repeated; none: no sink
};

// One kv head's memory as tiles/kernels.h describes it, and the queries of one row.
struct Memory {
    Memory(const Case& at, uint64_t seed) : c(at), key_dim(at.head_dim) {
        Draw draw(seed);
        keys.assign(key_tile_elements(c.head_dim) * c.ring / 16, to_bf16(kNan));
        values.assign(value_row_elements(c.v_head_dim) * c.ring, to_bf16(kNan));
        for (uint32_t p = c.first; p <= c.last; ++p) {
            for (uint32_t d = 0; d < key_dim; ++d)
                key(p, d) = to_bf16(d < c.head_dim ? static_cast<float>(draw.between(-8, 8)) : 0);
            for (uint32_t d = 0; d < c.v_head_dim; ++d) value(p, d) = draw.half();
        }
        for (uint32_t h = 0; h < c.heads; ++h) {
            for (uint32_t d = 0; d < key_dim; ++d)
                query.push_back(d < c.head_dim ? static_cast<float>(draw.between(-8, 8)) : 0);
        }
    }

    bf16& key(uint32_t p, uint32_t d) {
        const uint32_t at = p % c.ring;
        return keys[((at / 16) * (key_dim / 2) + d / 2) * 32 + at % 16 * 2 + d % 2];
    }
    bf16& value(uint32_t p, uint32_t d) {
        return values[p % c.ring * value_row_elements(c.v_head_dim) + d];
    }
    double score(uint32_t h, uint32_t p) {
        double sum = 0;
        for (uint32_t d = 0; d < c.head_dim; ++d)
            sum += double{query[h * key_dim + d]} * to_float(key(p, d));
        return sum * c.scale;
    }

    Case c;
    uint32_t key_dim;
    std::vector<bf16> keys, values;
    std::vector<float> query;
};

// What attend and merge leave: outputs [head][v_head_dim], with one more that nobody may write.
struct Mixed {
    std::vector<float> out, parts, highest, total;
};

const float* sink_of(const Case& c, uint32_t head) {
    return c.sinks.empty() ? nullptr : &c.sinks[head % c.sinks.size()];
}

// Heads [begin, end) of the row: every chunk by itself, then merged.
Mixed mix(const Kernels& kernels, const Memory& m, uint32_t begin, uint32_t end) {
    const Case& c = m.c;
    const uint32_t heads = end - begin;
    const uint32_t first_chunk = c.first / kChunkKeys;
    const uint32_t chunks = c.last / kChunkKeys - first_chunk + 1;
    const size_t width = value_row_elements(c.v_head_dim);
    Mixed made;
    made.out.assign(heads * c.v_head_dim + 1, 777);
    made.parts.assign(size_t{heads} * chunks * width, 777);
    made.highest.assign(heads * chunks, 777);
    made.total.assign(heads * chunks, 777);
    std::vector<float> scratch(heads * kScoreStride, kNan);
    for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
        AttendTask task{};
        task.query = m.query.data() + size_t{begin} * m.key_dim;
        task.heads = heads;
        task.head_dim = c.head_dim;
        task.v_head_dim = c.v_head_dim;
        task.scale = c.scale;
        task.keys = m.keys.data();
        task.values = m.values.data();
        task.ring = c.ring;
        task.first = std::max(c.first, (first_chunk + chunk) * kChunkKeys);
        task.last = std::min(c.last, (first_chunk + chunk) * kChunkKeys + kChunkKeys - 1);
        task.out = made.parts.data() + chunk * width;
        task.out_stride = chunks * width;
        task.highest = made.highest.data() + chunk;
        task.total = made.total.data() + chunk;
        task.number_stride = chunks;
        task.scratch = scratch.data();
        kernels.attend(task);
    }
    for (uint32_t h = 0; h < heads; ++h) {
        kernels.merge(made.parts.data() + size_t{h} * chunks * width,
                      made.highest.data() + h * chunks, made.total.data() + h * chunks, chunks,
                      width, 1, sink_of(c, begin + h), c.v_head_dim,
                      made.out.data() + size_t{h} * c.v_head_dim);
    }
    return made;
}

void expect_softmax(const Kernels& kernels, const Case& c, uint64_t seed) {
    SCOPED_TRACE(c.what);
    Memory m(c, seed);
    const Mixed mixed = mix(kernels, m, 0, c.heads);
    EXPECT_EQ(mixed.out.back(), 777);
    for (uint32_t h = 0; h < c.heads; ++h) {
        std::vector<double> scores;
        for (uint32_t p = c.first; p <= c.last; ++p) scores.push_back(m.score(h, p));
        const float* const sink = sink_of(c, h);
        double top = *std::ranges::max_element(scores);
        if (sink != nullptr) top = std::max(top, double{*sink});
        double total = sink != nullptr ? std::exp(*sink - top) : 0;
        for (const double score : scores) total += std::exp(score - top);
        for (uint32_t d = 0; d < c.v_head_dim; ++d) {
            double sum = 0, size = 0;
            for (uint32_t p = c.first; p <= c.last; ++p) {
                const double part =
                    std::exp(scores[p - c.first] - top) / total * to_float(m.value(p, d));
                sum += part;
                size += std::abs(part);
            }
            // e^x within 3e-7, twice where chunks are merged, and sums of a chunk's keys.
            const double tolerance = test::half_step_bf16(sum) * 1.001 + 4e-6 * size + 1e-37;
            const float found = mixed.out[h * c.v_head_dim + d];
            ASSERT_NEAR(found, sum, tolerance) << "head " << h << ", dim " << d;
            ASSERT_EQ(found, round_bf16(found));
        }
    }
}

const std::vector<Case> kCases = {
    {"one key", 1, 24, 16, 16, 0, 0},
    {"one key of a later tile", 2, 24, 16, 48, 37, 37},
    {"one tile", 2, 24, 16, 16, 0, 15},
    {"two keys in two tiles", 2, 24, 16, 48, 15, 16},
    {"a window that begins inside a tile", 4, 24, 16, 64, 5, 40},
    {"a window that ends inside its first tile", 4, 24, 16, 64, 33, 39},
    {"the ring wraps", 4, 24, 16, 48, 70, 102},
    {"the ring wraps at a tile", 4, 24, 16, 48, 90, 96},
    {"far along the ring", 2, 24, 16, 80, 100000, 100063},
    {"a whole chunk", 2, 24, 16, 512, 512, 1023},
    {"a whole chunk that begins inside a tile", 2, 24, 16, 528, 7, 511},
    {"two chunks", 3, 24, 16, 1024, 100, 700},
    {"three chunks, the last of one key", 3, 24, 16, 1536, 0, 1024},
    {"five chunks in a ring that wraps", 2, 24, 16, 2560, 3000, 5200},
    {"wide heads", 2, 192, 128, 128, 3, 120},
    {"middling heads", 5, 96, 64, 128, 3, 120},
    {"values of no whole tile", 3, 24, 20, 64, 3, 60},
    {"heads of no whole tile", 3, 26, 16, 64, 3, 60},
    {"two dims", 3, 2, 1, 64, 3, 60},
    {"six dims, in no group of four pairs", 3, 6, 100, 64, 3, 60},
    {"large scores", 3, 192, 16, 64, 3, 60, 1.0f},
    {"very large scores", 3, 192, 16, 1024, 3, 1000, 1024.0f},
    {"equal scores", 3, 24, 16, 1024, 3, 1000, 0.0f},
    {"a sink", 4, 24, 16, 64, 3, 60, 0x1p-5f, {0.3f, -1.5f}},
    {"a sink over all", 2, 24, 16, 64, 3, 60, 0x1p-5f, {60.0f, 500.0f}},
    {"a sink under all", 2, 24, 16, 64, 3, 60, 0x1p-5f, {-60.0f, -1e6f}},
    {"a sink of several chunks", 3, 24, 16, 1536, 0, 1100, 0x1p-5f, {2.0f, 40.0f, -3.0f}},
};

TEST_P(AttentionKernels, IsASoftmax) {
    for (uint64_t i = 0; i < kCases.size(); ++i) expect_softmax(kernels(), kCases[i], i);
}

TEST_P(AttentionKernels, IsASoftmaxForAnyNumberOfHeads) {
    for (uint32_t heads = 1; heads <= 20; ++heads)
        expect_softmax(kernels(), {"heads", heads, 24, 20, 64, 9, 50, 0x1p-4f, {1, -1, 2}}, heads);
}

TEST_P(AttentionKernels, IsASoftmaxForEveryWindow) {
    for (uint32_t first = 0; first < 34; ++first) {
        for (uint32_t last = first; last < 36; ++last)
            expect_softmax(kernels(), {"window", 1, 4, 1, 48, first, last}, first);
    }
}

TEST_P(AttentionKernels, AHeadHasTheSameBitsInAnyCompany) {
    for (const Case& c : {Case{"one chunk", 20, 24, 20, 64, 9, 50},
                          Case{"two chunks", 11, 96, 64, 1024, 9, 700, 0x1p-7f, {1, 2}}}) {
        const Memory m(c, 1);
        const Mixed all = mix(kernels(), m, 0, c.heads);
        const size_t numbers = all.total.size() / c.heads, parts = all.parts.size() / c.heads;
        for (uint32_t begin = 0; begin < c.heads; begin += 3) {
            for (uint32_t end = begin + 1; end <= c.heads; ++end) {
                const Mixed some = mix(kernels(), m, begin, end);
                for (uint32_t i = 0; i < (end - begin) * c.v_head_dim; ++i)
                    ASSERT_EQ(bits_of(some.out[i]), bits_of(all.out[begin * c.v_head_dim + i]));
                for (uint32_t i = 0; i < (end - begin) * numbers; ++i) {
                    ASSERT_EQ(bits_of(some.total[i]), bits_of(all.total[begin * numbers + i]));
                    ASSERT_EQ(bits_of(some.highest[i]), bits_of(all.highest[begin * numbers + i]));
                }
                for (uint32_t h = begin; h < end; ++h) {
                    for (uint32_t i = 0; i < parts; ++i) {
                        // Behind v_head_dim there may be anything.
                        if (i % value_row_elements(c.v_head_dim) >= c.v_head_dim) continue;
                        ASSERT_EQ(bits_of(some.parts[(h - begin) * parts + i]),
                                  bits_of(all.parts[h * parts + i]));
                    }
                }
            }
        }
    }
}

// Where a key lies in the ring is nothing that its score or value could depend on.
TEST_P(AttentionKernels, TheRingChangesNoBit) {
    const Case one{"ring of 64", 3, 24, 16, 64, 70, 115},
        other{"ring of 96", 3, 24, 16, 96, 70, 115};
    EXPECT_EQ(mix(kernels(), Memory(one, 1), 0, 3).out, mix(kernels(), Memory(other, 1), 0, 3).out);
}

// With values that are a unit matrix, a part is e^(score - highest) itself.
TEST_P(AttentionKernels, ExponentialsAreAccurate) {
    constexpr uint32_t kKeys = kChunkKeys;
    std::vector<bf16> keys(key_tile_elements(2) * kKeys / 16), values(kKeys * kKeys);
    const std::vector<float> query = {1, 0};
    for (uint32_t p = 0; p < kKeys; ++p) values[p * kKeys + p] = to_bf16(1);
    for (const float largest : {1e-6f, 0.01f, 1.0f, 10.0f, 87.0f, 88.0f, 200.0f, 1e30f}) {
        // Key 0 has score 0, the others fall to -largest.
        for (uint32_t p = 0; p < kKeys; ++p)
            keys[p / 16 * 32 + p % 16 * 2] =
                to_bf16(-largest * static_cast<float>(p) / static_cast<float>(kKeys - 1));
        std::vector<float> out(kKeys), scratch(kScoreStride);
        float highest = 777, total = 777;
        kernels().attend({.query = query.data(),
                          .heads = 1,
                          .head_dim = 2,
                          .v_head_dim = kKeys,
                          .scale = 1,
                          .keys = keys.data(),
                          .values = values.data(),
                          .ring = kKeys,
                          .first = 0,
                          .last = kKeys - 1,
                          .out = out.data(),
                          .out_stride = kKeys,
                          .highest = &highest,
                          .total = &total,
                          .number_stride = 1,
                          .scratch = scratch.data()});
        EXPECT_EQ(highest, 0);
        double sum = 0;
        for (uint32_t p = 0; p < kKeys; ++p) {
            const float x = to_float(keys[p / 16 * 32 + p % 16 * 2]);
            const double exact = std::exp(double{x});
            sum += exact;
            if (x < -87) {
                EXPECT_EQ(out[p], 0) << x;
            } else {
                EXPECT_NEAR(out[p], exact, 3e-7 * exact) << x;
            }
        }
        EXPECT_NEAR(total, sum, 3e-6 * sum);
    }
}

// ------------------------------------------------------------------------------- merge alone

TEST_P(AttentionKernels, MergingOnePartDividesByItsTotal) {
    const std::vector<float> values = {1, -2, 3.5f, 0};
    const float highest = -1e30f, total = 4;  // whatever the highest is
    std::vector<float> out(5, 777);
    kernels().merge(values.data(), &highest, &total, 1, 0, 0, nullptr, 4, out.data());
    for (int i = 0; i < 4; ++i) EXPECT_EQ(out[i], values[i] / 4);
    EXPECT_EQ(out[4], 777);
}

TEST_P(AttentionKernels, APartFarBelowTheHighestAddsNothing) {
    const std::vector<float> values = {1, 1000, 2}, highest = {0, -200, 0}, total = {1, 1000, 1};
    float out = 777;
    kernels().merge(values.data(), highest.data(), total.data(), 3, 1, 1, nullptr, 1, &out);
    EXPECT_EQ(out, 1.5f);
}

INSTANTIATE_TEST_SUITE_P(EachIsa, AttentionKernels, testing::ValuesIn(kIsas), test::isa_test_name);

}  // namespace
}  // namespace tessera
