#include "model/ranks.h"

#include <fmt/format.h>

namespace tessera {
namespace {

constexpr uint32_t kSlice = 32;  // columns: an MXFP4 block must not be cut

std::optional<std::string> attention_problem(const AttentionShape& a, const char* kind,
                                             uint32_t ranks) {
    const uint32_t group = a.heads / a.kv_heads;
    const bool kv_fits =
        a.kv_heads % ranks == 0 || (ranks % a.kv_heads == 0 && group % (ranks / a.kv_heads) == 0);
    if (a.heads % ranks == 0 && kv_fits) return std::nullopt;
    return fmt::format("{} {} heads ({} kv) cannot be cut over {} ranks", a.heads, kind, a.kv_heads,
                       ranks);
}

}  // namespace

std::optional<std::string> ranks_problem(const Shape& s, uint32_t ranks) {
    if (std::ranges::find(kRankCounts, ranks) == std::end(kRankCounts))
        return fmt::format("{} ranks: expected 1, 2, 4 or 8", ranks);
    if (ranks == 1) return std::nullopt;
    if (const auto problem = attention_problem(s.full, "full", ranks)) return problem;
    if (const auto problem = attention_problem(s.sliding, "sliding", ranks)) return problem;
    for (const auto& [width, name] : {std::pair{s.dense_width, "intermediate_size"},
                                      {s.expert_width, "moe_intermediate_size"}}) {
        if (width % (ranks * kSlice) != 0)
            return fmt::format("{} {} cannot be cut into {} parts of whole blocks of {}", name,
                               width, ranks, kSlice);
    }
    return std::nullopt;
}

std::optional<std::string> drafter_ranks_problem(const DrafterShape& d, uint32_t ranks) {
    constexpr uint32_t kUnit = 16;  // rows of a unit in tile order
    if (d.attention.head_dim % kUnit != 0)
        return fmt::format("the drafter's head_dim is {}, expected a multiple of {}",
                           d.attention.head_dim, kUnit);
    if (ranks == 1) return std::nullopt;
    if (const auto problem = attention_problem(d.attention, "drafter", ranks)) return problem;
    if (d.width % (ranks * kSlice) != 0)
        return fmt::format(
            "the drafter's intermediate_size {} cannot be cut into {} parts of whole blocks of {}",
            d.width, ranks, kSlice);
    const uint64_t columns = uint64_t{d.hidden} * d.taps.size();
    if (columns % ranks != 0)
        return fmt::format("the drafter's {} tapped columns cannot be cut into {} parts", columns,
                           ranks);
    return std::nullopt;
}

}  // namespace tessera
