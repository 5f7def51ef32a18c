// How a model is cut over ranks: heads, expert columns and vocabulary in equal parts (tensor
// parallel), norms and router on every rank.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "model/shape.h"

namespace tessera {

inline constexpr uint32_t kRankCounts[] = {1, 2, 4, 8};

struct Span {
    uint32_t begin = 0;
    uint32_t end = 0;

    uint32_t count() const { return end - begin; }
    bool operator==(const Span&) const = default;
};

// The share of `total` that `rank` of `ranks` has, in equal parts.
constexpr Span share(uint32_t total, uint32_t rank, uint32_t ranks) {
    return {static_cast<uint32_t>(uint64_t{total} * rank / ranks),
            static_cast<uint32_t>(uint64_t{total} * (rank + 1) / ranks)};
}

// The attention of one rank. With fewer kv heads than ranks, neighbouring ranks hold the same one.
struct AttentionPart {
    Span heads;     // of the query
    Span kv_heads;  // each serves group() of them
    uint32_t group() const { return heads.count() / kv_heads.count(); }
};

constexpr AttentionPart attention_part(const AttentionShape& a, uint32_t rank, uint32_t ranks) {
    const Span heads = share(a.heads, rank, ranks);
    if (a.kv_heads >= ranks) return {heads, share(a.kv_heads, rank, ranks)};
    const uint32_t kv_head = heads.begin / (a.heads / a.kv_heads);
    return {heads, {kv_head, kv_head + 1}};
}

// Why the model cannot be cut so, in a sentence; none if it can.
std::optional<std::string> ranks_problem(const Shape& shape, uint32_t ranks);

// The same of a drafter; also of one that no program is made for: the tiles of its queries and keys
// are whole heads of whole units.
std::optional<std::string> drafter_ranks_problem(const DrafterShape& drafter, uint32_t ranks);

// The order of a rotary head's dims where scores are computed: pairs that turn together stand side
// by side. Dim `d` there is this dim of the published order. A score does not depend on it.
constexpr uint32_t rotary_source_dim(uint32_t d, uint32_t rotary_dims) {
    if (d >= rotary_dims) return d;
    return d / 2 + (d % 2) * (rotary_dims / 2);
}

}  // namespace tessera
