// Which experts a step needs, and for which rows: written by the route tile, read by the experts'.
// Slots are filled in ascending order of expert, live ones first.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera {

struct RouteShape {
    uint32_t rows;  // at most
    uint32_t experts;
    uint32_t per_token;

    constexpr uint32_t pairs() const { return rows * per_token; }
    constexpr uint32_t slots() const { return experts < pairs() ? experts : pairs(); }
};

// A view of a routes buffer of route_bytes().
struct Routes {
    uint32_t* live;    // slots in use
    uint32_t* expert;  // [slots]
    uint32_t* first;   // [slots + 1]: the pairs of slot s are pair[first[s]] to pair[first[s + 1]]
    uint32_t* pair;    // [pairs]: row * per_token + choice, ascending in a slot
    float* weight;     // [pairs], by pair: row * per_token + choice
    float* score;      // [experts], scratch
    float* biased;     // [experts], scratch
    uint32_t* chosen;  // [pairs], by pair, scratch: its expert
};

constexpr uint64_t route_bytes(uint32_t rows, uint32_t per_token, uint32_t experts) {
    const RouteShape shape{rows, experts, per_token};
    return 4ull * (2 + 2ull * shape.slots() + 3ull * shape.pairs() + 2ull * experts);
}

inline Routes routes_at(std::byte* memory, const RouteShape& shape) {
    auto* at = reinterpret_cast<uint32_t*>(memory);
    const auto take = [&](uint32_t count) {
        uint32_t* const begin = at;
        at += count;
        return begin;
    };
    Routes routes{};
    routes.live = take(1);
    routes.expert = take(shape.slots());
    routes.first = take(shape.slots() + 1);
    routes.pair = take(shape.pairs());
    routes.weight = reinterpret_cast<float*>(take(shape.pairs()));
    routes.chosen = take(shape.pairs());
    routes.score = reinterpret_cast<float*>(take(shape.experts));
    routes.biased = reinterpret_cast<float*>(take(shape.experts));
    return routes;
}

struct RouteRule {
    const float* correction_bias;  // experts: chooses, does not weigh
    bool normalize;                // weights are divided by their sum
    float scale;
};

// Fills `routes` for `rows` rows of router outputs, score of expert e of row r at
// logits[r * stride + e]: the sigmoid's top per_token with the bias, best first, the lower index
// winning a tie.
void route(const float* logits, uint64_t stride, uint32_t rows, const RouteShape& shape,
           const RouteRule& rule, const Routes& routes);

// ---- The GPU's form, in a block's shared memory: fixed sizes, and every block routes for itself
// ----

namespace gpu {

inline constexpr uint32_t kRouteRows = 8, kRouteChoices = 8, kRouteExperts = 384;
inline constexpr uint32_t kRoutePairs = kRouteRows * kRouteChoices;
inline constexpr uint32_t kNoPair = 255;

// Slots are filled in ascending order of expert. A pair is row * per_token + choice.
struct alignas(8) Routing {
    uint32_t live;
    uint16_t expert[kRoutePairs];           // by slot
    uint8_t pair[kRoutePairs][kRouteRows];  // by slot and row: the pair, or kNoPair
    uint8_t order[kRoutePairs];             // a row's pairs by ascending expert
    float weight[kRoutePairs];              // by pair
    uint16_t chosen[kRoutePairs];           // by pair: its expert
    uint32_t wanted[kRouteExperts / 32];    // a bit an expert
};

}  // namespace gpu

}  // namespace tessera
