#include "text/added.h"

#include "base/check.h"

namespace tessera {

uint32_t AddedTokens::child_of(uint32_t node, char byte) const {
    uint32_t child = nodes_[node].child;
    while (child != kNone && nodes_[child].byte != static_cast<uint8_t>(byte)) {
        child = nodes_[child].sibling;
    }
    return child;
}

bool AddedTokens::insert(std::string_view text, uint32_t id) {
    CHECK(!text.empty() && text.size() <= kAddedTokenBytesMax);
    uint32_t node = 0;
    for (const char byte : text) {
        uint32_t child = child_of(node, byte);
        if (child == kNone) {
            child = static_cast<uint32_t>(nodes_.size());
            Node fresh;
            fresh.sibling = nodes_[node].child;
            fresh.byte = static_cast<uint8_t>(byte);
            nodes_.push_back(fresh);
            nodes_[node].child = child;
        }
        node = child;
    }
    if (nodes_[node].ends_token) return false;
    nodes_[node].ends_token = true;
    nodes_[node].id = id;
    starts_[static_cast<uint8_t>(text[0])] = true;
    return true;
}

std::optional<AddedTokens::Match> AddedTokens::find(std::string_view text, size_t from) const {
    for (size_t begin = from; begin < text.size(); ++begin) {
        if (!starts_[static_cast<uint8_t>(text[begin])]) continue;
        std::optional<Match> longest;
        uint32_t node = 0;
        for (size_t i = begin; i < text.size(); ++i) {
            node = child_of(node, text[i]);
            if (node == kNone) break;
            if (nodes_[node].ends_token) longest = {begin, i + 1 - begin, nodes_[node].id};
        }
        if (longest) return longest;
    }
    return std::nullopt;
}

std::optional<uint32_t> AddedTokens::id_of(std::string_view text) const {
    uint32_t node = 0;
    for (const char byte : text) {
        node = child_of(node, byte);
        if (node == kNone) return std::nullopt;
    }
    if (!nodes_[node].ends_token) return std::nullopt;
    return nodes_[node].id;
}

}  // namespace tessera
