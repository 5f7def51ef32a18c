// The random filling that benchmarks read: seeded, finite, and no further than it was asked.
#include "runtime/kv_cache.h"

#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>

#include "support/toys.h"

namespace tessera {
namespace {

constexpr uint32_t kRanks = 2, kContext = 3 * kChunkKeys, kSeed = 7;

// All of one kv head's memory that `position` lies in: keys, then values.
std::vector<std::span<const bf16>> head_memory(const KvCache& cache, const AttentionShape& a,
                                               uint32_t rank, uint32_t layer, uint32_t kv,
                                               uint32_t position) {
    const KvSpan at = cache.at(rank, layer, kv, position);
    return {{at.keys, key_tile_elements(a.head_dim) * (at.ring / kUnitRows)},
            {at.values, value_row_elements(a.v_head_dim) * at.ring}};
}

// Calls each(what, is it a ring, memory) for all heads of the toy, at the chunk of `position`.
template <typename Each>
void each_head(const KvCache& cache, const Shape& shape, uint32_t position, Each each) {
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
        for (uint32_t layer = 0; layer < shape.layers; ++layer) {
            const AttentionShape& a = shape.attention(layer);
            for (uint32_t kv = 0; kv < attention_part(a, rank, kRanks).kv_heads.count(); ++kv)
                for (const auto memory : head_memory(cache, a, rank, layer, kv, position))
                    each(testing::Message()
                             << "rank " << rank << " layer " << layer << " kv " << kv,
                         a.window > 0, memory);
        }
    }
}

std::vector<uint16_t> bits(const KvCache& cache, const Shape& shape) {
    std::vector<uint16_t> all;
    for (uint32_t position = 0; position < kContext; position += kChunkKeys)
        each_head(cache, shape, position, [&](const auto&, bool, std::span<const bf16> memory) {
            for (const bf16 value : memory) all.push_back(value.bits);
        });
    return all;
}

KvCache filled(const Shape& shape, uint32_t length, uint64_t seed) {
    KvCache cache(shape, kRanks, kContext);
    cache.fill_random(length, seed);
    return cache;
}

TEST(KvCacheFilledAtRandom, HasSmallFiniteValuesUpToAWholeChunk) {
    const Shape shape = test::toy_shape();  // two layers see all, two slide
    for (const uint32_t length : {0u, 1u, 511u, 512u, 513u, 1024u, 1536u}) {
        const KvCache cache = filled(shape, length, kSeed);
        for (uint32_t position = 0; position < kContext; position += kChunkKeys) {
            each_head(cache, shape, position,
                      [&](const auto& where, bool ring, std::span<const bf16> memory) {
                          SCOPED_TRACE(where);
                          const auto largest = std::ranges::max(
                              memory, {}, [](bf16 x) { return std::abs(to_float(x)); });
                          if (ring || position < length) {
                              EXPECT_TRUE(std::ranges::all_of(
                                  memory, [](bf16 x) { return std::isfinite(to_float(x)); }));
                              EXPECT_LE(std::abs(to_float(largest)), 0.5f);
                              EXPECT_GT(std::abs(to_float(largest)), 0.25f);
                          } else {
                              EXPECT_EQ(largest.bits, 0)
                                  << "length " << length << " reached " << position;
                          }
                      });
        }
    }
}

TEST(KvCacheFilledAtRandom, IsDecidedByTheSeed) {
    const Shape shape = test::toy_shape();
    const std::vector<uint16_t> first = bits(filled(shape, 600, kSeed), shape);
    EXPECT_EQ(bits(filled(shape, 600, kSeed), shape), first);
    EXPECT_NE(bits(filled(shape, 600, kSeed + 1), shape), first);
}

}  // namespace
}  // namespace tessera
