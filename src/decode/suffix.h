// Drafts text that repeats itself (edits, code, tool calls): finds where the text's own end stood
// before and proposes what followed there. Costs no pass of any model and no weights. Knows tokens
// as numbers only; whether a draft is worth verifying is the controller's to say.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tessera {

// A shorter match says little about what follows.
inline constexpr uint32_t kMatchMin = 8;

// Matches are told apart up to this length: enough to rank them, and it bounds the work.
inline constexpr uint32_t kMatchMax = 64;

// Earlier ends looked at by one find(), newest first. An end of eight frequent tokens (spaces, a
// table's rules) may have thousands; the newest are the likeliest, and this many comparisons of
// kMatchMax tokens take a few microseconds, where a step takes hundreds.
inline constexpr uint32_t kCandidatesMax = 32;

class SuffixMatcher {
  public:
    // Of a text of at most `context` tokens. Allocates here, 12 to 16 bytes a token, and never
    // again.
    explicit SuffixMatcher(uint32_t context);

    void append(std::span<const uint32_t> tokens);

    // Back to the first `length` tokens: as if the others had never been appended.
    void truncate(uint32_t length);

    uint32_t length() const { return length_; }

    struct Match {
        uint32_t length;  // of the match, in tokens: 0, or kMatchMin to kMatchMax
        uint32_t count;   // tokens written

        friend bool operator==(const Match&, const Match&) = default;
    };

    // Fills `out` with the tokens that followed the longest earlier occurrence of the text's own
    // end, the most recent of equally long ones; writes nothing where none is long enough. What is
    // proposed may run past the end: it then goes on with its own beginning, so that a loop goes
    // on looping.
    Match find(std::span<uint32_t> out) const;

  private:
    uint32_t bucket(uint32_t end) const;
    uint32_t common(uint32_t end) const;

    // Ends are counts of tokens: the text of length `end` ends there. 0 is no end.
    uint32_t length_ = 0;
    uint32_t shift_;                 // 64 - log2 of the number of buckets
    std::vector<uint32_t> tokens_;   // context
    std::vector<uint32_t> earlier_;  // context + 1: the newest earlier end in the same bucket
    std::vector<uint32_t> newest_;   // buckets: by a hash of the last kMatchMin tokens
};

}  // namespace tessera
