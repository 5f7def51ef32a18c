// Byte-pair merging: one word in, token ids out, in O(n log n) however long the word is. Knows
// ranks and ids only: no text, no Unicode, no special tokens.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace tessera {

// One merge: `left` followed by `right` becomes `result`. Its rank is its place in the list.
struct Merge {
    uint32_t left;
    uint32_t right;
    uint32_t result;
};

// Immutable after construction; shared freely between threads.
class Bpe {
  public:
    // `byte_ids`: the token of each single byte. `merges`, best first, no pair twice.
    Bpe(const std::array<uint32_t, 256>& byte_ids, const std::vector<Merge>& merges);

    // Appends the ids of `word`: the merge of lowest rank first, the leftmost of equals first,
    // until none applies.
    void encode(std::string_view word, std::vector<uint32_t>& out) const;

  private:
    static constexpr uint32_t kNoRank = UINT32_MAX;
    static constexpr uint64_t kNoPair = UINT64_MAX;
    struct Slot {
        uint64_t pair = kNoPair;
        uint32_t rank = kNoRank;
        uint32_t result = 0;
    };

    Slot find(uint32_t left, uint32_t right) const;
    void encode_short(std::string_view word, std::vector<uint32_t>& out) const;
    template <typename Candidates>
    void encode_long(std::string_view word, std::vector<uint32_t>& out) const;

    std::array<uint32_t, 256> byte_ids_;
    std::vector<Slot> slots_;  // open addressing, at most half full, a power of two
    unsigned shift_ = 64;      // 64 - log2(slots)
};

}  // namespace tessera
