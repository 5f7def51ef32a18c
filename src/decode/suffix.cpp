#include "decode/suffix.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace tessera {
namespace {

// Lengths are kept in 32 bits, with room for sums of two.
constexpr uint32_t kContextMax = 1u << 30;

// At least as many buckets as tokens: most chains are of one end, or of equal ones.
uint32_t bucket_count(uint32_t context) {
    CHECK(context <= kContextMax);
    return std::bit_ceil(std::max(context, 2u));
}

}  // namespace

SuffixMatcher::SuffixMatcher(uint32_t context)
    : shift_(64 - static_cast<uint32_t>(std::countr_zero(bucket_count(context)))),
      tokens_(context),
      earlier_(context + 1),
      newest_(bucket_count(context)) {}

void SuffixMatcher::append(std::span<const uint32_t> tokens) {
    CHECK(tokens.size() <= tokens_.size() - length_);
    for (const uint32_t token : tokens) {
        tokens_[length_++] = token;
        if (length_ < kMatchMin) continue;
        uint32_t& newest = newest_[bucket(length_)];
        earlier_[length_] = newest;
        newest = length_;
    }
}

// The newest end of a bucket is the last one appended to it, so that taking ends off in reverse
// leaves each bucket as it was.
void SuffixMatcher::truncate(uint32_t length) {
    CHECK(length <= length_);
    for (; length_ > length; --length_) {
        if (length_ < kMatchMin) continue;
        uint32_t& newest = newest_[bucket(length_)];
        CHECK(newest == length_);
        newest = earlier_[length_];
    }
}

SuffixMatcher::Match SuffixMatcher::find(std::span<uint32_t> out) const {
    if (length_ < kMatchMin) return {};
    uint32_t best_length = 0;
    uint32_t best_end = 0;
    uint32_t end = earlier_[length_];
    for (uint32_t seen = 0; seen < kCandidatesMax && end != 0; ++seen, end = earlier_[end]) {
        const uint32_t match = common(end);
        if (match < kMatchMin || match <= best_length) continue;  // a bucket is shared
        best_length = match;
        best_end = end;
        if (match == kMatchMax) break;
    }
    if (best_length == 0) return {};
    const uint32_t followed_by = length_ - best_end;
    for (uint32_t i = 0; i < out.size(); ++i) out[i] = tokens_[best_end + i % followed_by];
    return {best_length, static_cast<uint32_t>(out.size())};
}

// Of the kMatchMin tokens before `end`.
uint32_t SuffixMatcher::bucket(uint32_t end) const {
    uint64_t hash = 0;
    for (uint32_t i = end - kMatchMin; i < end; ++i) {
        hash = (hash + tokens_[i] + 1) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;  // else what multiplies into the high bits never comes back down
    }
    return static_cast<uint32_t>((hash * 0x9e3779b97f4a7c15u) >> shift_);
}

// How many tokens before `end` equal those before the text's end, counted up to kMatchMax.
uint32_t SuffixMatcher::common(uint32_t end) const {
    const uint32_t most = std::min(end, kMatchMax);
    uint32_t match = 0;
    while (match < most && tokens_[end - 1 - match] == tokens_[length_ - 1 - match]) ++match;
    return match;
}

}  // namespace tessera
