#include "grammar/vocabulary.h"

#include <algorithm>

#include "base/check.h"

namespace tessera::grammar {
namespace {

constexpr size_t kBytesMax = 255;

// Bytes of the plain character at the beginning; 0 if there is none. The lead byte says how long it
// is; which leads and which followers there are is UTF-8's table 3-7 (Unicode 15, chapter 3).
size_t plain_character(std::string_view text) {
    const auto at = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : 0u; };
    const uint32_t lead = at(0);
    if (lead < 0x80) return lead >= 0x20 && lead != '"' && lead != '\\' ? 1 : 0;
    if (lead < 0xc2 || lead > 0xf4) return 0;
    const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    for (size_t i = 1; i < length; ++i)
        if ((at(i) & 0xc0) != 0x80) return 0;
    const uint32_t second = at(1);
    const bool odd = (lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) ||
                     (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f);
    return odd ? 0 : length;
}

}  // namespace

void add_bits(std::span<uint64_t> bits, std::span<const uint64_t> more) {
    CHECK(bits.size() == more.size());
    for (size_t i = 0; i < bits.size(); ++i) bits[i] |= more[i];
}

Trie::Trie(std::vector<Entry> entries) {
    std::erase_if(entries, [](const Entry& entry) {
        return entry.first.empty() || entry.first.size() > kBytesMax;
    });
    std::ranges::sort(entries);
    std::vector<uint32_t> open;  // nodes from a first byte to the string at hand
    const auto close = [&](size_t depth) {
        for (; open.size() > depth; open.pop_back())
            nodes_[open.back()].beyond = static_cast<uint32_t>(nodes_.size());
    };
    std::string_view before;
    for (const auto& [text, token] : entries) {
        const auto same = static_cast<size_t>(
            std::mismatch(before.begin(), before.end(), text.begin(), text.end()).first -
            before.begin());
        close(same);
        for (size_t depth = same; depth < text.size(); ++depth) {
            open.push_back(static_cast<uint32_t>(nodes_.size()));
            nodes_.push_back({static_cast<uint8_t>(text[depth]), static_cast<uint8_t>(depth), 0,
                              static_cast<uint32_t>(tokens_.size()), 0});
        }
        ++nodes_[open.back()].count;
        tokens_.push_back(token);
        before = text;
    }
    close(0);
}

std::span<const uint32_t> Trie::tokens_below(const Node& node) const {
    const size_t end = node.beyond < nodes_.size() ? nodes_[node.beyond].first : tokens_.size();
    return std::span(tokens_).subspan(node.first, end - node.first);
}

Vocabulary::Vocabulary(std::vector<std::string_view> bytes, std::vector<uint32_t> ends,
                       std::vector<Marker> markers, uint32_t size)
    : bytes_(std::move(bytes)),
      ends_(std::move(ends)),
      markers_(std::move(markers)),
      size_(size),
      plain_(kExact + 1) {
    CHECK(bytes_.size() <= size_);
    for (Bits& bits : plain_) bits.resize(words());
    plain_all_.resize(words());
    std::vector<Trie::Entry> all, rests, short_rests;
    std::vector<std::vector<Trie::Entry>> by_characters, longer;
    const auto put = [](auto& lists, uint32_t characters, Trie::Entry entry) {
        if (lists.size() <= characters) lists.resize(characters + 1);
        lists[characters].push_back(entry);
    };
    for (uint32_t token = 0; token < bytes_.size(); ++token) {
        const std::string_view text = bytes_[token];
        if (text.size() > kBytesMax) bytes_[token] = {};
        if (text.empty() || text.size() > kBytesMax) continue;
        all.emplace_back(text, token);

        std::string_view rest = text;
        uint32_t characters = 0;
        while (const size_t length = plain_character(rest)) {
            rest.remove_prefix(length);
            ++characters;
        }
        if (rest.empty()) {
            set_bit(plain_all_, token);
            plain_max_ = std::max(plain_max_, characters);
            if (characters > kExact) longer_.emplace_back(characters, token);
            for (uint32_t bound = characters; bound <= kExact; ++bound)
                set_bit(plain_[bound], token);
        } else {
            rests.emplace_back(rest, token);
            put(by_characters, characters, {rest, token});
            // A rest has at most a character a byte.
            if (characters + rest.size() <= kShort) {
                short_rests.emplace_back(rest, token);
            } else {
                put(longer, characters, {rest, token});
            }
        }
    }
    all_ = Trie(std::move(all));
    rests_ = Trie(std::move(rests));
    short_rests_ = Trie(std::move(short_rests));
    for (auto& entries : by_characters) rests_by_characters_.emplace_back(std::move(entries));
    for (auto& entries : longer) long_rests_.emplace_back(std::move(entries));
    std::ranges::sort(longer_);
}

std::optional<uint32_t> Vocabulary::marker(std::string_view spelling) const {
    const auto found = std::ranges::find(markers_, spelling, &Marker::spelling);
    return found != markers_.end() ? std::optional(found->token) : std::nullopt;
}

void Vocabulary::add_plain(uint32_t characters, std::span<uint64_t> bits) const {
    if (characters >= plain_max_) return add_bits(bits, plain_all_);
    add_bits(bits, plain_[std::min(characters, kExact)]);
    for (const auto& [length, token] : longer_) {
        if (length > characters) break;
        set_bit(bits, token);
    }
}

}  // namespace tessera::grammar
