#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <functional>

#include "base/check.h"

namespace tessera {
namespace {

// Up to here a scan of every rank beats a heap; nearly all words of real text are shorter.
inline constexpr size_t kShortWordBytes = 48;

// Positions are 32 bits wide. Longer words are cut here; no published limit comes near.
inline constexpr size_t kWordBytesMax = size_t{1} << 30;

uint64_t pair_of(uint32_t left, uint32_t right) {
    return uint64_t{left} << 32 | right;
}

uint64_t scatter(uint64_t pair) {
    pair ^= pair >> 32;
    return pair * 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio
}

struct Symbol {
    uint32_t id;
    uint32_t previous;
    uint32_t next;
};

inline constexpr uint32_t kEnd = UINT32_MAX;  // no neighbour
inline constexpr uint32_t kGone =
    UINT32_MAX;  // the id of a symbol that its left neighbour absorbed

}  // namespace

Bpe::Bpe(const std::array<uint32_t, 256>& byte_ids, const std::vector<Merge>& merges)
    : byte_ids_(byte_ids), slots_(std::bit_ceil(std::max<size_t>(2 * merges.size(), 2))) {
    shift_ = 64u - static_cast<unsigned>(std::countr_zero(slots_.size()));
    for (size_t rank = 0; rank < merges.size(); ++rank) {
        const uint64_t pair = pair_of(merges[rank].left, merges[rank].right);
        size_t at = scatter(pair) >> shift_;
        for (; slots_[at].pair != kNoPair; at = (at + 1) & (slots_.size() - 1)) {
            CHECK(slots_[at].pair != pair);
        }
        slots_[at] = {pair, static_cast<uint32_t>(rank), merges[rank].result};
    }
}

Bpe::Slot Bpe::find(uint32_t left, uint32_t right) const {
    const uint64_t pair = pair_of(left, right);
    size_t at = scatter(pair) >> shift_;
    while (slots_[at].pair != pair) {
        if (slots_[at].pair == kNoPair) return {};
        at = (at + 1) & (slots_.size() - 1);
    }
    return slots_[at];
}

void Bpe::encode(std::string_view word, std::vector<uint32_t>& out) const {
    for (; word.size() > kWordBytesMax; word.remove_prefix(kWordBytesMax)) {
        encode_long(word.substr(0, kWordBytesMax), out);
    }
    word.size() <= kShortWordBytes ? encode_short(word, out) : encode_long(word, out);
}

void Bpe::encode_short(std::string_view word, std::vector<uint32_t>& out) const {
    std::array<uint32_t, kShortWordBytes> ids;
    std::array<Slot, kShortWordBytes> merges;  // of ids[i] with ids[i + 1]
    size_t count = word.size();
    for (size_t i = 0; i < count; ++i) ids[i] = byte_ids_[static_cast<uint8_t>(word[i])];
    for (size_t i = 0; i + 1 < count; ++i) merges[i] = find(ids[i], ids[i + 1]);
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; ++i) {
            if (merges[i].rank < merges[best].rank) best = i;
        }
        if (merges[best].rank == kNoRank) break;
        ids[best] = merges[best].result;
        --count;
        for (size_t i = best + 1; i < count; ++i) {
            ids[i] = ids[i + 1];
            merges[i] = merges[i + 1];
        }
        if (best > 0) merges[best - 1] = find(ids[best - 1], ids[best]);
        if (best + 1 < count) merges[best] = find(ids[best], ids[best + 1]);
    }
    out.insert(out.end(), ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count));
}

// A heap of (rank, position), eight bytes each, over a linked list of symbols. An entry may be
// stale: ranks are unique to a pair, so it is valid if its rank is still that of its position.
void Bpe::encode_long(std::string_view word, std::vector<uint32_t>& out) const {
    const uint32_t count = static_cast<uint32_t>(word.size());
    std::vector<Symbol> symbols(count);
    for (uint32_t i = 0; i < count; ++i) {
        symbols[i] = {byte_ids_[static_cast<uint8_t>(word[i])], i == 0 ? kEnd : i - 1,
                      i + 1 == count ? kEnd : i + 1};
    }
    std::vector<uint64_t> heap;
    const auto merge_at = [&](uint32_t at) {
        const uint32_t next = at == kEnd ? kEnd : symbols[at].next;
        return next == kEnd ? Slot{} : find(symbols[at].id, symbols[next].id);
    };
    for (uint32_t i = 0; i + 1 < count; ++i) {
        const Slot merge = merge_at(i);
        if (merge.rank != kNoRank) heap.push_back(pair_of(merge.rank, i));
    }
    std::make_heap(heap.begin(), heap.end(), std::greater<>());
    const auto offer = [&](uint32_t at) {
        const Slot merge = merge_at(at);
        if (merge.rank == kNoRank) return;
        heap.push_back(pair_of(merge.rank, at));
        std::push_heap(heap.begin(), heap.end(), std::greater<>());
    };
    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), std::greater<>());
        const uint32_t rank = static_cast<uint32_t>(heap.back() >> 32);
        const uint32_t at = static_cast<uint32_t>(heap.back());
        heap.pop_back();
        if (symbols[at].id == kGone) continue;
        const Slot merge = merge_at(at);
        if (merge.rank != rank) continue;
        const uint32_t absorbed = symbols[at].next;
        symbols[at].id = merge.result;
        symbols[at].next = symbols[absorbed].next;
        symbols[absorbed].id = kGone;
        if (symbols[at].next != kEnd) symbols[symbols[at].next].previous = at;
        offer(symbols[at].previous);
        offer(at);
    }
    for (uint32_t at = 0; at != kEnd; at = symbols[at].next) out.push_back(symbols[at].id);
}

}  // namespace tessera
