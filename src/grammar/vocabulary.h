// A tokenizer's tokens, sorted for masks: as a trie of their bytes, and by what they mean inside a
// JSON string, where nearly all of them fit. Immutable; serves many threads.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera::grammar {

// A bit a token: bit t % 64 of word t / 64.
using Bits = std::vector<uint64_t>;
inline void set_bit(std::span<uint64_t> bits, uint32_t token) {
    bits[token / 64] |= uint64_t{1} << token % 64;
}
void add_bits(std::span<uint64_t> bits, std::span<const uint64_t> more);

// Strings with what they stand for, in preorder: a node's subtree follows it.
class Trie {
  public:
    struct Node {
        uint8_t byte;
        uint8_t depth;          // 0: a first byte
        uint32_t beyond;        // the first node that is not in its subtree
        uint32_t first, count;  // of tokens(): those whose bytes end here
    };
    using Entry = std::pair<std::string_view, uint32_t>;

    Trie() = default;
    // Of strings of 1 to 255 bytes; longer ones and empty ones are left out.
    explicit Trie(std::vector<Entry> entries);

    std::span<const Node> nodes() const { return nodes_; }
    std::span<const uint32_t> tokens(const Node& node) const {
        return std::span(tokens_).subspan(node.first, node.count);
    }
    // Of all that end in the node's subtree.
    std::span<const uint32_t> tokens_below(const Node& node) const;

  private:
    std::vector<Node> nodes_;
    std::vector<uint32_t> tokens_;
};

class Vocabulary {
  public:
    struct Marker {
        std::string spelling;
        uint32_t token;
    };
    // `bytes`: of each token that is text, empty for all others; they outlive this. `ends`: those
    // that end an answer. `markers`: added tokens that a program may ask for. `size`: of masks, in
    // tokens.
    Vocabulary(std::vector<std::string_view> bytes, std::vector<uint32_t> ends,
               std::vector<Marker> markers, uint32_t size);

    uint32_t size() const { return size_; }
    size_t words() const { return (size_t{size_} + 63) / 64; }
    std::string_view bytes(uint32_t token) const {
        return token < bytes_.size() ? bytes_[token] : std::string_view();
    }
    std::span<const uint32_t> ends() const { return ends_; }
    std::optional<uint32_t> marker(std::string_view spelling) const;
    const Trie& all() const { return all_; }

    // ---- inside a JSON string

    // A token is some whole plain characters (no quote, backslash or control character), and
    // perhaps a rest that is not. Without a rest, and of at most `characters`: as bits.
    void add_plain(uint32_t characters, std::span<uint64_t> bits) const;
    // The rests of all tokens that have one; of those of at most kShort characters, rest and all;
    // of all, and of those that are longer, by how many characters stand before.
    static constexpr uint32_t kShort = 24;
    const Trie& rests() const { return rests_; }
    const Trie& short_rests() const { return short_rests_; }
    std::span<const Trie> rests_by_characters() const { return rests_by_characters_; }
    std::span<const Trie> long_rests() const { return long_rests_; }

  private:
    std::vector<std::string_view> bytes_;
    std::vector<uint32_t> ends_;
    std::vector<Marker> markers_;
    uint32_t size_;
    Trie all_;
    // Up to kExact characters a mask for each bound; beyond, the few that are longer, in order.
    static constexpr uint32_t kExact = 16;
    std::vector<Bits> plain_;
    Bits plain_all_;
    std::vector<std::pair<uint32_t, uint32_t>> longer_;  // characters, token
    uint32_t plain_max_ = 0;                             // characters of a token without rest
    Trie rests_, short_rests_;
    std::vector<Trie> rests_by_characters_, long_rests_;
};

}  // namespace tessera::grammar
