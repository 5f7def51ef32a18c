#include "reference/reference.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "reference/loops.h"

namespace tessera {

using loops::multiply;

namespace {

// The `count` best of `scores`, best first; the lower index wins a tie.
std::vector<uint32_t> top(std::span<const float> scores, uint32_t count) {
    std::vector<uint32_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
    order.resize(count);
    return order;
}

}  // namespace

Reference::Reference(const Weights& weights, Rounding rounding)
    : weights_(weights), rounding_(rounding) {}

std::vector<float> Reference::forward(Cache& cache, std::span<const uint32_t> tokens,
                                      const Observer& observe,
                                      const ExpertObserver& observe_experts) const {
    const Shape& s = shape();
    cache.keys.resize(s.layers);
    cache.values.resize(s.layers);

    std::vector<float> x(tokens.size() * s.hidden);
    for (size_t row = 0; row < tokens.size(); ++row) {
        CHECK(tokens[row] < s.vocab);
        dequantize_row(weights_.embedding, tokens[row],
                       std::span(x).subspan(row * s.hidden, s.hidden));
    }
    for (uint32_t i = 0; i < s.layers; ++i) {
        const LayerWeights& w = weights_.layers[i];
        loops::add(x, attention(w, i, cache, norm(x, w.input_norm), observe), rounding_);
        if (observe) observe(i, Stage::attended, x);
        const std::vector<float> u = norm(x, w.post_norm);
        loops::add(x,
                   s.is_moe[i] ? experts(w, i, u, observe_experts)
                               : loops::feed_forward(w.dense, u, rounding_),
                   rounding_);
        if (observe) observe(i, Stage::residual, x);
    }
    cache.length += static_cast<uint32_t>(tokens.size());
    return norm(x, weights_.norm);
}

std::vector<float> Reference::logits(std::span<const float> hidden) const {
    return multiply(weights_.head, hidden);
}

std::vector<float> Reference::attention(const LayerWeights& w, uint32_t layer, Cache& cache,
                                        std::span<const float> u, const Observer& observe) const {
    const AttentionShape& a = shape().attention(layer);
    const auto rows = static_cast<uint32_t>(u.size() / shape().hidden);
    std::vector<float> q = multiply(w.q, u), k = multiply(w.k, u), v = multiply(w.v, u);
    for (std::vector<float>* projected : {&q, &k, &v}) loops::store(*projected, rounding_);
    loops::rotate(q, a.heads, cache.length, a, rounding_);
    loops::rotate(k, a.kv_heads, cache.length, a, rounding_);
    if (observe) observe(layer, Stage::query, q);
    for (float& value : v) value = stored(shape().value_scale * value, rounding_);
    std::vector<float>&keys = cache.keys[layer], &values = cache.values[layer];
    keys.insert(keys.end(), k.begin(), k.end());
    values.insert(values.end(), v.begin(), v.end());

    std::vector<float> mixed(size_t{rows} * a.o_columns());
    for (uint32_t row = 0; row < rows; ++row) {
        const uint32_t i = cache.length + row;  // the query's position
        const uint32_t first = a.window != 0 && i >= a.window ? i - a.window + 1 : 0;
        loops::attend(std::span(q).subspan(size_t{row} * a.q_rows(), a.q_rows()),
                      {keys, values, first, i + 1}, w.sink, a,
                      std::span(mixed).subspan(size_t{row} * a.o_columns(), a.o_columns()),
                      rounding_);
    }
    if (observe) observe(layer, Stage::mixed, mixed);
    return multiply(w.o, mixed);
}

std::vector<Reference::Choice> Reference::route(const LayerWeights& w,
                                                std::span<const float> in) const {
    const Shape& s = shape();
    std::vector<float> score = multiply(w.router, in);
    for (float& value : score) value = loops::sigmoid(value);
    std::vector<float> biased = score;
    for (uint32_t e = 0; e < s.experts; ++e) biased[e] += w.correction_bias[e];
    // The bias chooses; the unbiased scores weigh.
    std::vector<Choice> choices;
    float sum = 0;
    for (const uint32_t e : top(biased, s.experts_per_token)) {
        choices.push_back({e, score[e]});
        sum += score[e];
    }
    const float divisor = s.normalize_top_k ? sum + 1e-20f : 1.0f;
    for (Choice& choice : choices) choice.weight = choice.weight / divisor * s.routed_scale;
    return choices;
}

std::vector<float> Reference::experts(const LayerWeights& w, uint32_t layer,
                                      std::span<const float> u,
                                      const ExpertObserver& observe) const {
    const Shape& s = shape();
    const size_t rows = u.size() / s.hidden;
    std::vector<std::vector<Choice>> choices;
    for (size_t row = 0; row < rows; ++row)
        choices.push_back(route(w, u.subspan(row * s.hidden, s.hidden)));

    // Expert by expert, so that each is dequantised once; the outputs wait in (row, slot) order
    // because a row adds its experts best first, whoever its neighbours are.
    std::vector<std::vector<float>> outputs(rows * s.experts_per_token);
    for (uint32_t e = 0; e < s.experts; ++e) {
        std::vector<float> gathered;
        std::vector<size_t> slots;
        for (size_t slot = 0; slot < outputs.size(); ++slot) {
            const size_t row = slot / s.experts_per_token;
            if (choices[row][slot % s.experts_per_token].expert != e) continue;
            const auto in = u.subspan(row * s.hidden, s.hidden);
            gathered.insert(gathered.end(), in.begin(), in.end());
            slots.push_back(slot);
        }
        if (slots.empty()) continue;
        const std::vector<float> mixed = loops::mixed(w.experts[e], gathered, rounding_);
        if (observe) observe(layer, e, gathered, mixed);
        const std::vector<float> y = multiply(w.experts[e].down, mixed);
        for (size_t i = 0; i < slots.size(); ++i) {
            outputs[slots[i]].assign(y.begin() + i * s.hidden, y.begin() + (i + 1) * s.hidden);
        }
    }
    std::vector<float> sums(u.size());
    for (size_t slot = 0; slot < outputs.size(); ++slot) {
        const size_t row = slot / s.experts_per_token;
        const float weight = choices[row][slot % s.experts_per_token].weight;
        for (uint32_t d = 0; d < s.hidden; ++d)
            sums[row * s.hidden + d] += weight * outputs[slot][d];
    }
    return sums;
}

std::vector<float> Reference::norm(std::span<const float> x, std::span<const float> gain) const {
    return loops::norm(x, gain, shape().norm_epsilon, rounding_);
}

}  // namespace tessera
