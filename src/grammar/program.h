// What a text may be, as a program over bytes: a nondeterministic automaton with a stack of return
// addresses and counters, so that JSON of any depth and lists of any bounds fit. Built by
// builder.h, immutable afterwards, and the same for every vocabulary: which tokens fit is the
// business of masks.h.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace tessera::grammar {

// A set of bytes.
class ByteSet {
  public:
    constexpr ByteSet() = default;
    static constexpr ByteSet of(uint8_t byte) { return range(byte, byte); }
    static constexpr ByteSet range(uint8_t first, uint8_t last) {
        ByteSet set;
        for (uint32_t b = first; b <= last; ++b) set.words_[b / 64] |= uint64_t{1} << b % 64;
        return set;
    }

    constexpr bool has(uint8_t byte) const { return words_[byte / 64] >> byte % 64 & 1; }
    constexpr bool empty() const { return (words_[0] | words_[1] | words_[2] | words_[3]) == 0; }
    constexpr ByteSet operator|(const ByteSet& other) const {
        ByteSet set = *this;
        for (uint32_t i = 0; i < 4; ++i) set.words_[i] |= other.words_[i];
        return set;
    }
    constexpr ByteSet operator-(const ByteSet& other) const {
        ByteSet set = *this;
        for (uint32_t i = 0; i < 4; ++i) set.words_[i] &= ~other.words_[i];
        return set;
    }
    // The one byte in it; -1 if there are none or several.
    int only() const;

    bool operator==(const ByteSet&) const = default;

  private:
    std::array<uint64_t, 4> words_{};
};

// An instruction's place in the program.
using Place = uint32_t;

enum class Op : uint8_t {
    // These take something of the text.
    kByte,    // `byte`, then `next`
    kEdges,   // a byte of one of edges [first, first + count), then that edge's target
    kText,    // a character of a JSON string, while there are less than `high`; or, from `low` on,
              // its closing quote, then `next`. The counter on top, if counts(), says how many
    kMarker,  // the added token that is spelt markers[`first`], then `next`

    // These take nothing.
    kSplit,   // any of targets [first, first + count)
    kCall,    // the rule at `first`, then `next`
    kReturn,  // of a rule; of the outermost one: the text may end here
    kCount,   // a counter begins at 0, then `next`
    // The counter on top is c: below `high`, c + 1 and `first` if c is 0, else `more`; from `low`
    // on, the counter ends and `next`. Without `high` it stays at `low`, or at 1.
    kLoop,
};

inline constexpr uint32_t kUnbounded = UINT32_MAX;

struct Instruction {
    Op op = Op::kReturn;
    uint8_t byte = 0;
    Place next = 0;
    uint32_t first = 0, count = 0;
    Place more = 0;
    uint32_t low = 0, high = kUnbounded;
};

// Whether a kText needs its counter.
constexpr bool counts(const Instruction& text) {
    return text.low > 0 || text.high != kUnbounded;
}

struct Edge {
    ByteSet bytes;
    Place target = 0;
};

struct Program {
    std::vector<Instruction> code;
    std::vector<Edge> edges;
    std::vector<Place> targets;
    std::vector<std::string> markers;
    Place start = 0;
    // What follows inside kText, each ending with kReturn: a backslash; the first byte of a longer
    // character, 0 where none begins so.
    Place escape = 0;
    std::array<Place, 256> character{};

    // What it was made from: equal sources, equal programs.
    std::string source;
};

}  // namespace tessera::grammar
