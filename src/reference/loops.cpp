#include "reference/loops.h"

#include <algorithm>

#include "base/check.h"

namespace tessera::loops {
namespace {

float silu(float x) {
    return x * sigmoid(x);
}

// `head` holds the rotary dims only: dim i pairs with i + half.
void rotate_head(std::span<float> head, uint32_t position, float theta, Rounding rounding) {
    const size_t half = head.size() / 2;
    for (size_t i = 0; i < half; ++i) {
        const float exponent = static_cast<float>(2 * i) / static_cast<float>(head.size());
        const float angle = static_cast<float>(position) * (1.0f / std::pow(theta, exponent));
        const float cosine = std::cos(angle), sine = std::sin(angle);
        const float low = head[i], high = head[i + half];
        head[i] = stored(low * cosine - high * sine, rounding);
        head[i + half] = stored(high * cosine + low * sine, rounding);
    }
}

}  // namespace

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

// One weight row at a time serves all rows, so its dequantisation is paid once.
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

std::vector<float> norm(std::span<const float> x, std::span<const float> gain, float epsilon,
                        Rounding rounding) {
    std::vector<float> y(x.size());
    const size_t width = gain.size();
    for (size_t row = 0; row < x.size() / width; ++row) {
        const auto in = x.subspan(row * width, width);
        const float variance = dot(in, in) / static_cast<float>(width);
        const float inverse = 1.0f / std::sqrt(variance + epsilon);
        for (size_t i = 0; i < width; ++i)
            y[row * width + i] = stored(stored(in[i] * inverse, rounding) * gain[i], rounding);
    }
    return y;
}

void store(std::span<float> values, Rounding rounding) {
    for (float& value : values) value = stored(value, rounding);
}

void add(std::span<float> x, std::span<const float> update, Rounding rounding) {
    CHECK(x.size() == update.size());
    for (size_t i = 0; i < x.size(); ++i)
        x[i] = stored(x[i] + stored(update[i], rounding), rounding);
}

void rotate(std::span<float> rows, uint32_t heads, uint32_t position, const AttentionShape& a,
            Rounding rounding) {
    for (size_t head = 0; head < rows.size() / a.head_dim; ++head) {
        rotate_head(rows.subspan(head * a.head_dim, a.rotary_dims),
                    position + static_cast<uint32_t>(head / heads), a.rope_theta, rounding);
    }
}

void attend(std::span<const float> query, const Visible& visible, std::span<const float> sink,
            const AttentionShape& a, std::span<float> out, Rounding rounding) {
    CHECK(visible.begin < visible.end);
    const float scale = 1.0f / std::sqrt(static_cast<float>(a.head_dim));
    std::vector<float> p(visible.end - visible.begin);
    std::ranges::fill(out, 0.0f);
    for (uint32_t h = 0; h < a.heads; ++h) {
        const uint32_t kv = h / (a.heads / a.kv_heads);
        const auto head = query.subspan(size_t{h} * a.head_dim, a.head_dim);
        for (uint32_t j = visible.begin; j < visible.end; ++j) {
            const size_t at = (size_t{j} * a.kv_heads + kv) * a.head_dim;
            p[j - visible.begin] = dot(head, visible.keys.subspan(at, a.head_dim)) * scale;
        }
        // The sink takes its share of the sum and brings no value.
        float highest = *std::ranges::max_element(p);
        if (!sink.empty()) highest = std::max(highest, sink[h]);
        float sum = sink.empty() ? 0.0f : std::exp(sink[h] - highest);
        for (float& score : p) sum += score = std::exp(score - highest);
        const auto mixed = out.subspan(size_t{h} * a.v_head_dim, a.v_head_dim);
        for (uint32_t j = visible.begin; j < visible.end; ++j) {
            const float* value = &visible.values[(size_t{j} * a.kv_heads + kv) * a.v_head_dim];
            const float share = p[j - visible.begin] / sum;
            for (uint32_t d = 0; d < a.v_head_dim; ++d) mixed[d] += share * value[d];
        }
        store(mixed, rounding);
    }
}

std::vector<float> mixed(const FeedForward& w, std::span<const float> x, Rounding rounding) {
    std::vector<float> gate = multiply(w.gate, x);
    const std::vector<float> up = multiply(w.up, x);
    for (size_t i = 0; i < gate.size(); ++i) {
        gate[i] = stored(silu(stored(gate[i], rounding)) * stored(up[i], rounding), rounding);
    }
    return gate;
}

std::vector<float> feed_forward(const FeedForward& w, std::span<const float> x, Rounding rounding) {
    return multiply(w.down, mixed(w, x, rounding));
}

}  // namespace tessera::loops
