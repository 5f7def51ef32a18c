#include "tiles/routes.h"

#include <cmath>

namespace tessera {
namespace {

void choose(const float* logits, const RouteShape& shape, const RouteRule& rule,
            const Routes& routes, uint32_t* chosen, float* weight) {
    for (uint32_t e = 0; e < shape.experts; ++e) {
        routes.score[e] = 1.0f / (1.0f + std::exp(-logits[e]));
        routes.biased[e] = routes.score[e] + rule.correction_bias[e];
    }
    float sum = 0;
    for (uint32_t choice = 0; choice < shape.per_token; ++choice) {
        uint32_t best = 0;
        for (uint32_t e = 1; e < shape.experts; ++e)
            if (routes.biased[e] > routes.biased[best]) best = e;
        routes.biased[best] = -INFINITY;
        chosen[choice] = best;
        weight[choice] = routes.score[best];
        sum += routes.score[best];
    }
    const float divisor = rule.normalize ? sum + 1e-20f : 1.0f;
    for (uint32_t choice = 0; choice < shape.per_token; ++choice)
        weight[choice] = weight[choice] / divisor * rule.scale;
}

}  // namespace

void route(const float* logits, uint64_t stride, uint32_t rows, const RouteShape& shape,
           const RouteRule& rule, const Routes& routes) {
    const uint32_t k = shape.per_token;
    for (uint32_t row = 0; row < rows; ++row)
        choose(logits + row * stride, shape, rule, routes, routes.chosen + row * k,
               routes.weight + row * k);

    // Pairs sorted by expert, stable: counted, then placed. The scores are read by now and their
    // memory counts.
    auto* const count = reinterpret_cast<uint32_t*>(routes.score);
    for (uint32_t e = 0; e < shape.experts; ++e) count[e] = 0;
    for (uint32_t pair = 0; pair < rows * k; ++pair) ++count[routes.chosen[pair]];
    uint32_t live = 0, next = 0;
    for (uint32_t e = 0; e < shape.experts; ++e) {
        if (count[e] == 0) continue;
        routes.expert[live] = e;
        routes.first[live++] = next;
        next += count[e];
        count[e] = next - count[e];  // where its next pair goes
    }
    routes.first[live] = next;
    for (uint32_t pair = 0; pair < rows * k; ++pair)
        routes.pair[count[routes.chosen[pair]]++] = pair;
    *routes.live = live;
}

}  // namespace tessera
