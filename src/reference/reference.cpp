#include "reference/reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "base/numbers.h"

namespace tessera {
namespace {

// Eight partial sums, always these eight and always added in this order: the compiler may use its
// vectors, and a result does not depend on which it has.
float dot(std::span<const float> a, std::span<const float> b) {
    constexpr size_t kLanes = 8;
    float lanes[kLanes] = {};
    size_t i = 0;
    for (; i + kLanes <= a.size(); i += kLanes) {
        for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
    }
    float sum = 0;
    for (; i < a.size(); ++i) sum += a[i] * b[i];
    for (const float lane : lanes) sum += lane;
    return sum;
}

// y[row] = W x[row], unrounded: [rows, columns] -> [rows, W.rows]. One weight row at a time serves
// all rows, so its dequantisation is paid once.
std::vector<float> multiply(const Matrix& w, std::span<const float> x) {
    const size_t rows = x.size() / w.columns;
    CHECK(rows * w.columns == x.size());
    std::vector<float> y(rows * w.rows), weight(w.columns);
    for (uint32_t out = 0; out < w.rows; ++out) {
        dequantize_row(w, out, weight);
        for (size_t row = 0; row < rows; ++row) {
            y[row * w.rows + out] = dot(weight, x.subspan(row * w.columns, w.columns));
        }
    }
    return y;
}

float sigmoid(float x) {
    return 1.0f / (1.0f + std::exp(-x));
}
float silu(float x) {
    return x * sigmoid(x);
}

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
                                      const Observer& observe) const {
    const Shape& s = shape();
    cache.keys.resize(s.layers);
    cache.values.resize(s.layers);

    std::vector<float> x(tokens.size() * s.hidden);
    for (size_t row = 0; row < tokens.size(); ++row) {
        CHECK(tokens[row] < s.vocab);
        dequantize_row(weights_.embedding, tokens[row],
                       std::span(x).subspan(row * s.hidden, s.hidden));
    }
    const auto add = [&](std::span<const float> update) {
        for (size_t i = 0; i < x.size(); ++i) x[i] = stored(x[i] + stored(update[i]));
    };
    for (uint32_t i = 0; i < s.layers; ++i) {
        const LayerWeights& w = weights_.layers[i];
        add(attention(w, i, cache, norm(x, w.input_norm), observe));
        if (observe) observe(i, Stage::attended, x);
        const std::vector<float> u = norm(x, w.post_norm);
        add(s.is_moe[i] ? experts(w, u) : feed_forward(w.dense, u));
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
    for (std::vector<float>* projected : {&q, &k, &v}) {
        for (float& value : *projected) value = stored(value);
    }
    for (uint32_t row = 0; row < rows; ++row) {
        const uint32_t position = cache.length + row;
        for (uint32_t h = 0; h < a.heads; ++h) {
            rotate(std::span(q).subspan((row * a.heads + h) * a.head_dim, a.rotary_dims), position,
                   a);
        }
        for (uint32_t h = 0; h < a.kv_heads; ++h) {
            rotate(std::span(k).subspan((row * a.kv_heads + h) * a.head_dim, a.rotary_dims),
                   position, a);
        }
    }
    if (observe) observe(layer, Stage::query, q);
    for (float& value : v) value = stored(shape().value_scale * value);
    std::vector<float>&keys = cache.keys[layer], &values = cache.values[layer];
    keys.insert(keys.end(), k.begin(), k.end());
    values.insert(values.end(), v.begin(), v.end());

    const float scale = 1.0f / std::sqrt(static_cast<float>(a.head_dim));
    std::vector<float> mixed(size_t{rows} * a.o_columns()), p;
    for (uint32_t row = 0; row < rows; ++row) {
        const uint32_t i = cache.length + row;  // the query's position
        const uint32_t first = a.window != 0 && i >= a.window ? i - a.window + 1 : 0;
        for (uint32_t h = 0; h < a.heads; ++h) {
            const uint32_t kv = h / (a.heads / a.kv_heads);
            const auto query =
                std::span(q).subspan((size_t{row} * a.heads + h) * a.head_dim, a.head_dim);
            p.assign(i - first + 1, 0.0f);
            for (uint32_t j = first; j <= i; ++j) {
                const auto key =
                    std::span(keys).subspan((size_t{j} * a.kv_heads + kv) * a.head_dim, a.head_dim);
                p[j - first] = dot(query, key) * scale;
            }
            // The sink takes its share of the sum and brings no value.
            float highest = *std::ranges::max_element(p);
            if (a.sink) highest = std::max(highest, w.sink[h]);
            float sum = a.sink ? std::exp(w.sink[h] - highest) : 0.0f;
            for (float& score : p) sum += score = std::exp(score - highest);
            const auto out =
                std::span(mixed).subspan((size_t{row} * a.heads + h) * a.v_head_dim, a.v_head_dim);
            for (uint32_t j = first; j <= i; ++j) {
                const float* value = &values[(size_t{j} * a.kv_heads + kv) * a.v_head_dim];
                for (uint32_t d = 0; d < a.v_head_dim; ++d) out[d] += p[j - first] / sum * value[d];
            }
            for (float& value : out) value = stored(value);
        }
    }
    if (observe) observe(layer, Stage::mixed, mixed);
    return multiply(w.o, mixed);
}

// NeoX pairing over `head`, which holds the rotary dims only.
void Reference::rotate(std::span<float> head, uint32_t position, const AttentionShape& a) const {
    const size_t half = head.size() / 2;
    for (size_t i = 0; i < half; ++i) {
        const float exponent = static_cast<float>(2 * i) / static_cast<float>(head.size());
        const float angle =
            static_cast<float>(position) * (1.0f / std::pow(a.rope_theta, exponent));
        const float cosine = std::cos(angle), sine = std::sin(angle);
        const float low = head[i], high = head[i + half];
        head[i] = stored(low * cosine - high * sine);
        head[i + half] = stored(high * cosine + low * sine);
    }
}

std::vector<float> Reference::feed_forward(const FeedForward& w, std::span<const float> u) const {
    std::vector<float> gate = multiply(w.gate, u);
    const std::vector<float> up = multiply(w.up, u);
    for (size_t i = 0; i < gate.size(); ++i)
        gate[i] = stored(silu(stored(gate[i])) * stored(up[i]));
    return multiply(w.down, gate);
}

std::vector<Reference::Choice> Reference::route(const LayerWeights& w,
                                                std::span<const float> in) const {
    const Shape& s = shape();
    std::vector<float> score = multiply(w.router, in);
    for (float& value : score) value = sigmoid(value);
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

std::vector<float> Reference::experts(const LayerWeights& w, std::span<const float> u) const {
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
        const std::vector<float> y = feed_forward(w.experts[e], gathered);
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
    std::vector<float> y(x.size());
    const size_t width = gain.size();
    for (size_t row = 0; row < x.size() / width; ++row) {
        const auto in = x.subspan(row * width, width);
        const float variance = dot(in, in) / static_cast<float>(width);
        const float inverse = 1.0f / std::sqrt(variance + shape().norm_epsilon);
        for (size_t i = 0; i < width; ++i)
            y[row * width + i] = stored(stored(in[i] * inverse) * gain[i]);
    }
    return y;
}

}  // namespace tessera
