// Finds added tokens in text: leftmost first, the longest of those that start together. Time is
// linear in the text times the longest token, whatever the number of tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace tessera {

inline constexpr size_t kAddedTokenBytesMax = 256;

class AddedTokens {
  public:
    struct Match {
        size_t begin;  // byte offset in the text
        size_t bytes;
        uint32_t id;
    };

    AddedTokens() : nodes_(1) {}

    // `text` is not empty and at most kAddedTokenBytesMax bytes. False if it is there already.
    bool insert(std::string_view text, uint32_t id);

    // The first match at or after byte `from`.
    std::optional<Match> find(std::string_view text, size_t from) const;

    // The id of the token that is exactly `text`.
    std::optional<uint32_t> id_of(std::string_view text) const;

  private:
    static constexpr uint32_t kNone = 0;  // the root is nobody's child and nobody's sibling
    struct Node {
        uint32_t child = kNone;
        uint32_t sibling = kNone;
        uint32_t id = 0;
        uint8_t byte = 0;
        bool ends_token = false;
    };

    uint32_t child_of(uint32_t node, char byte) const;

    std::vector<Node> nodes_;
    bool starts_[256] = {};
};

}  // namespace tessera
