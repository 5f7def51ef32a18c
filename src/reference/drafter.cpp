#include "reference/drafter.h"

#include <algorithm>

#include "base/check.h"
#include "reference/loops.h"

namespace tessera {

using loops::multiply;

namespace {

// The first of `context` positions that the query at `position` sees; `context` if it sees none.
uint32_t first_visible(uint32_t window, uint32_t position, uint32_t context) {
    return window != 0 && position >= window ? std::min(position - window + 1, context) : 0;
}

}  // namespace

ReferenceDrafter::ReferenceDrafter(const DrafterWeights& drafter, const Weights& target,
                                   Rounding rounding)
    : drafter_(drafter), target_(target), rounding_(rounding) {
    CHECK(drafter.shape.hidden == target.shape.hidden);
}

void ReferenceDrafter::extend(Cache& cache, std::span<const float> taps) const {
    const DrafterShape& s = shape();
    const size_t rows = taps.size() / drafter_.fc.columns;
    CHECK(rows * drafter_.fc.columns == taps.size());
    cache.keys.resize(s.layers);
    cache.values.resize(s.layers);
    std::vector<float> c = multiply(drafter_.fc, taps);
    loops::store(c, rounding_);
    c = norm(c, drafter_.hidden_norm);
    for (uint32_t i = 0; i < s.layers; ++i) {
        const std::vector<float> k = keys(drafter_.layers[i], c, cache.length);
        const std::vector<float> v = values(drafter_.layers[i], c);
        cache.keys[i].insert(cache.keys[i].end(), k.begin(), k.end());
        cache.values[i].insert(cache.values[i].end(), v.begin(), v.end());
    }
    cache.length += static_cast<uint32_t>(rows);
}

std::vector<float> ReferenceDrafter::propose(const Cache& cache, uint32_t anchor,
                                             const Observer& observe) const {
    const DrafterShape& s = shape();
    CHECK(anchor < target_.shape.vocab);
    std::vector<float> x(s.hidden);
    dequantize_row(target_.embedding, anchor, x);
    const std::vector<float>& mask = drafter_.mask_embedding;
    for (uint32_t slot = 1; slot < s.block; ++slot) x.insert(x.end(), mask.begin(), mask.end());

    for (uint32_t i = 0; i < s.layers; ++i) {
        const DrafterLayerWeights& w = drafter_.layers[i];
        loops::add(x, attention(w, i, cache, norm(x, w.input_norm)), rounding_);
        loops::add(x, loops::feed_forward(w.dense, norm(x, w.post_norm), rounding_), rounding_);
        if (observe) observe(i, x);
    }
    return norm(std::span(x).subspan(s.hidden), drafter_.norm);
}

std::vector<float> ReferenceDrafter::logits(std::span<const float> hidden) const {
    return multiply(target_.head, hidden);
}

std::vector<float> ReferenceDrafter::keys(const DrafterLayerWeights& w, std::span<const float> u,
                                          uint32_t position) const {
    std::vector<float> k = multiply(w.k, u);
    loops::store(k, rounding_);
    k = norm(k, w.k_norm);
    loops::rotate(k, shape().attention.kv_heads, position, shape().attention, rounding_);
    return k;
}

std::vector<float> ReferenceDrafter::values(const DrafterLayerWeights& w,
                                            std::span<const float> u) const {
    std::vector<float> v = multiply(w.v, u);
    loops::store(v, rounding_);
    for (float& value : v) value = stored(shape().value_scale * value, rounding_);
    return v;
}

// The context within the window, then the whole block, in both directions: what one row sees is one
// run of [context | block], since all that the window takes away is its beginning.
std::vector<float> ReferenceDrafter::attention(const DrafterLayerWeights& w, uint32_t layer,
                                               const Cache& cache, std::span<const float> u) const {
    const AttentionShape& a = shape().attention;
    const uint32_t block = shape().block;
    std::vector<float> q = multiply(w.q, u);
    loops::store(q, rounding_);
    q = norm(q, w.q_norm);
    loops::rotate(q, a.heads, cache.length, a, rounding_);

    // What the anchor's row does not see, no row sees: it is not copied.
    const uint32_t begin = first_visible(a.window, cache.length, cache.length);
    const auto joined = [&](const std::vector<std::vector<float>>& context, uint32_t width,
                            const std::vector<float>& own) {
        std::vector<float> table;
        if (cache.length > 0) {
            table.assign(context[layer].begin() + size_t{begin} * width, context[layer].end());
        }
        table.insert(table.end(), own.begin(), own.end());
        return table;
    };
    const std::vector<float> k = joined(cache.keys, a.k_rows(), keys(w, u, cache.length));
    const std::vector<float> v = joined(cache.values, a.v_rows(), values(w, u));

    std::vector<float> mixed(size_t{block} * a.o_columns());
    for (uint32_t row = 0; row < block; ++row) {
        const uint32_t first = first_visible(a.window, cache.length + row, cache.length);
        loops::attend(std::span(q).subspan(size_t{row} * a.q_rows(), a.q_rows()),
                      {k, v, first - begin, cache.length + block - begin}, w.sink, a,
                      std::span(mixed).subspan(size_t{row} * a.o_columns(), a.o_columns()),
                      rounding_);
    }
    return multiply(w.o, mixed);
}

std::vector<float> ReferenceDrafter::norm(std::span<const float> x,
                                          std::span<const float> gain) const {
    return loops::norm(x, gain, shape().norm_epsilon, rounding_);
}

}  // namespace tessera
