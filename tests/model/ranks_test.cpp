// How a model is cut: equal parts that make the whole, kv heads held by as many ranks as share
// them, and in words why some models cannot be cut.
#include "model/ranks.h"

#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/published.h"
#include "support/toys.h"

namespace tessera {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(Share, EqualPartsMakeTheWhole) {
    for (const uint32_t total : {0u, 1u, 7u, 8u, 203u, 152576u, 4294967295u}) {
        for (const uint32_t ranks : {1u, 2u, 3u, 4u, 8u, 33u}) {
            uint32_t at = 0;
            for (uint32_t rank = 0; rank < ranks; ++rank) {
                const Span part = share(total, rank, ranks);
                EXPECT_EQ(part.begin, at);
                EXPECT_GE(part.count(), total / ranks);
                EXPECT_LE(part.count(), uint64_t{total} / ranks + 1);
                at = part.end;
            }
            EXPECT_EQ(at, total);
            // The last is never smaller than another.
            EXPECT_EQ(share(total, ranks - 1, ranks).count(),
                      (uint64_t{total} + ranks - 1) / ranks);
        }
    }
}

struct Cut {
    uint32_t heads, kv_heads, ranks;
    std::vector<Span> kv;  // by rank
};

TEST(AttentionPart, ARankHasTheKvHeadsOfItsQueryHeads) {
    for (const Cut& cut : std::vector<Cut>{
             {8, 4, 1, {{0, 4}}},
             {8, 4, 2, {{0, 2}, {2, 4}}},
             {8, 4, 4, {{0, 1}, {1, 2}, {2, 3}, {3, 4}}},
             {8, 4, 8, {{0, 1}, {0, 1}, {1, 2}, {1, 2}, {2, 3}, {2, 3}, {3, 4}, {3, 4}}},
             {8, 2, 4, {{0, 1}, {0, 1}, {1, 2}, {1, 2}}},
             {8, 1, 2, {{0, 1}, {0, 1}}},
             {128, 8, 8, {{0, 1}, {1, 2}, {2, 3}, {3, 4}, {4, 5}, {5, 6}, {6, 7}, {7, 8}}}}) {
        AttentionShape a{};
        a.heads = cut.heads;
        a.kv_heads = cut.kv_heads;
        std::set<uint32_t> heads;
        for (uint32_t rank = 0; rank < cut.ranks; ++rank) {
            const AttentionPart part = attention_part(a, rank, cut.ranks);
            EXPECT_EQ(part.kv_heads, cut.kv[rank]) << "rank " << rank << " of " << cut.ranks;
            EXPECT_EQ(part.heads.count(), cut.heads / cut.ranks);
            EXPECT_EQ(part.group() * part.kv_heads.count(), part.heads.count());
            for (uint32_t h = part.heads.begin; h < part.heads.end; ++h) {
                EXPECT_TRUE(heads.insert(h).second);
                // The h-th query head reads kv head h / (heads / kv_heads): the one that the rank's
                // own count leads to.
                EXPECT_EQ(part.kv_heads.begin + (h - part.heads.begin) / part.group(),
                          h / (cut.heads / cut.kv_heads));
            }
        }
        EXPECT_EQ(heads.size(), cut.heads);
    }
}

TEST(RanksProblem, PublishedModelsAndToysHaveNone) {
    for (const Shape& shape :
         {parse_shape(test::pro_fp4_config(), "pro"), parse_shape(test::flash_config(), "flash"),
          parse_shape(test::flash26_config(), "flash"), test::toy_shape()}) {
        for (const uint32_t ranks : kRankCounts)
            EXPECT_EQ(ranks_problem(shape, ranks), std::nullopt);
    }
}

struct Problem {
    Json changes;
    uint32_t ranks;
    std::vector<const char*> words;
};

TEST(RanksProblem, IsToldInWords) {
    for (const Problem& problem : std::vector<Problem>{
             {Json::object(), 0, {"0 ranks: expected 1, 2, 4 or 8"}},
             {Json::object(), 3, {"3 ranks: expected"}},
             {Json::object(), 16, {"16 ranks: expected"}},
             {{{"num_attention_heads", 6}}, 4, {"6 full heads (2 kv) cannot be cut over 4 ranks"}},
             {{{"swa_num_attention_heads", 12}},
              8,
              {"12 sliding heads (4 kv) cannot be cut over 8 ranks"}},
             // 6 kv heads: neither a multiple of 4 ranks nor shared by whole ranks.
             {{{"num_attention_heads", 12},
               {"num_key_value_heads", 6},
               {"swa_num_attention_heads", 12},
               {"swa_num_key_value_heads", 6}},
              4,
              {"12 full heads (6 kv) cannot be cut over 4 ranks"}},
             {{{"intermediate_size", 160}},
              2,
              {"intermediate_size 160 cannot be cut into 2 parts of whole blocks of 32"}},
             {{{"moe_intermediate_size", 96}},
              4,
              {"moe_intermediate_size 96 cannot be cut into 4 parts"}}}) {
        const auto said = ranks_problem(test::toy_shape(problem.changes), problem.ranks);
        ASSERT_TRUE(said) << problem.changes.dump() << ", " << problem.ranks;
        for (const char* words : problem.words) EXPECT_THAT(*said, HasSubstr(words));
    }
}

TEST(RanksProblem, OneRankTakesEverything) {
    EXPECT_EQ(ranks_problem(
                  test::toy_shape(
                      {{"intermediate_size", 41}, {"num_attention_heads", 6}, {"vocab_size", 2}}),
                  1),
              std::nullopt);
}

TEST(RotarySourceDim, PutsPartnersSideBySide) {
    for (const uint32_t rotary : {0u, 2u, 8u, 64u}) {
        const uint32_t dims = rotary + 5;
        std::set<uint32_t> seen;
        for (uint32_t d = 0; d < dims; ++d) {
            const uint32_t from = rotary_source_dim(d, rotary);
            seen.insert(from);
            if (d >= rotary) {
                EXPECT_EQ(from, d);
            } else if (d % 2 == 0) {
                EXPECT_EQ(from, d / 2);
                EXPECT_EQ(rotary_source_dim(d + 1, rotary), from + rotary / 2);
            }
        }
        EXPECT_EQ(seen.size(), dims);
    }
}

}  // namespace
}  // namespace tessera
