// Merging against the definition: the merge of lowest rank first, the leftmost of equals first,
// found by looking at every pair each time.
#include "text/bpe.h"

#include <array>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support.h"

namespace tessera {
namespace {

std::array<uint32_t, 256> bytes_as_ids() {
    std::array<uint32_t, 256> ids;
    std::iota(ids.begin(), ids.end(), 0u);
    return ids;
}

std::vector<uint32_t> by_definition(const std::vector<Merge>& merges, std::string_view word) {
    std::vector<uint32_t> ids;
    for (const char c : word) ids.push_back(static_cast<uint8_t>(c));
    for (;;) {
        size_t best_rank = merges.size(), best = 0;
        for (size_t i = 0; i + 1 < ids.size(); ++i) {
            for (size_t rank = 0; rank < best_rank; ++rank) {
                if (merges[rank].left != ids[i] || merges[rank].right != ids[i + 1]) continue;
                best_rank = rank;
                best = i;
            }
        }
        if (best_rank == merges.size()) return ids;
        ids[best] = merges[best_rank].result;
        ids.erase(ids.begin() + static_cast<ptrdiff_t>(best) + 1);
    }
}

// Merges over the letters a to c, each of tokens made before it. In a trained file a token's parts
// have lower ranks than its uses; `shuffled` is the file that does not keep to that.
std::vector<Merge> random_merges(Draw& draw, bool shuffled) {
    std::vector<uint32_t> tokens = {'a', 'b', 'c'};
    std::vector<Merge> merges;
    for (uint32_t result = 256; result < 268; ++result) {
        const uint32_t left = tokens[draw.below(tokens.size())];
        const uint32_t right = tokens[draw.below(tokens.size())];
        bool known = false;
        for (const Merge& merge : merges) known |= merge.left == left && merge.right == right;
        if (known) continue;
        merges.push_back({left, right, result});
        tokens.push_back(result);
    }
    for (size_t i = merges.size(); shuffled && i > 1; --i) {
        std::swap(merges[i - 1], merges[draw.below(i)]);
    }
    return merges;
}

std::string random_word(Draw& draw, size_t bytes) {
    std::string word(bytes, ' ');
    const uint64_t letters = 1 + draw.below(4);  // the fourth is in no merge
    for (char& c : word) c = static_cast<char>('a' + draw.below(letters));
    return word;
}

TEST(Bpe, MergesByTheDefinitionAtEveryLength) {
    for (uint64_t seed = 0; seed < 400; ++seed) {
        Draw draw(seed);
        const std::vector<Merge> merges = random_merges(draw, seed % 2 == 1);
        const Bpe bpe(bytes_as_ids(), merges);
        for (const size_t bytes : {0, 1, 2, 3, 7, 20, 47, 48, 49, 50, 130}) {
            const std::string word = random_word(draw, bytes);
            std::vector<uint32_t> ids;
            bpe.encode(word, ids);
            EXPECT_EQ(ids, by_definition(merges, word)) << word;
        }
    }
}

// The longest words take another way through the queue of merges.
TEST(Bpe, VeryLongWordsMergeByTheDefinition) {
    for (uint64_t seed = 0; seed < 12; ++seed) {
        Draw draw(seed);
        const std::vector<Merge> merges = random_merges(draw, seed % 4 != 0);
        const Bpe bpe(bytes_as_ids(), merges);
        const std::string word = random_word(draw, 8192 + seed % 3);
        std::vector<uint32_t> ids;
        bpe.encode(word, ids);
        EXPECT_TRUE(ids == by_definition(merges, word)) << "seed " << seed;
    }
}

TEST(Bpe, AppendsToWhatIsThere) {
    const Bpe bpe(bytes_as_ids(), {{'a', 'b', 256}});
    std::vector<uint32_t> ids = {7};
    bpe.encode("cab", ids);
    EXPECT_EQ(ids, (std::vector<uint32_t>{7, 'c', 256}));
}

}  // namespace
}  // namespace tessera
