#include "model/traffic.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace tessera {
namespace {

double blocks(double count) {
    return std::ceil(count / kFp8Block);
}

// Rows of the fused projection on one rank; kv heads are held twice where there are fewer of them.
double qkv_rows(const AttentionShape& a, uint32_t ranks) {
    const double kv_heads = std::max<double>(1.0, 1.0 * a.kv_heads / ranks);
    return 1.0 * a.heads / ranks * a.head_dim + kv_heads * (a.head_dim + a.v_head_dim);
}

// A key and its value in one layer of one rank, bf16.
double key_bytes(const AttentionShape& a, uint32_t ranks) {
    return 2.0 * std::max<double>(1.0, 1.0 * a.kv_heads / ranks) * (a.head_dim + a.v_head_dim);
}

}  // namespace

Format stored_format(const Shape& s, Linear linear, uint32_t layer) {
    const Quantization& q = s.quantization;
    if (linear == Linear::router) return Format::f32;
    if (linear == Linear::head || !q.fp8) return Format::bf16;
    const std::string at = "model.layers." + std::to_string(layer);
    if (linear == Linear::output)
        return q.kept_in_bf16.contains(at + ".self_attn.o_proj") ? Format::bf16 : Format::fp8;
    if (linear == Linear::expert && q.mxfp4_experts) return Format::mxfp4;
    return Format::fp8;
}

double matrix_bytes(Format format, double rows, double columns) {
    const double elements = rows * columns, bytes = elements * element_bits(format) / 8;
    switch (format) {
        case Format::f32:
        case Format::bf16:
            return bytes;
        case Format::fp8:
            return bytes + 4 * blocks(rows) * blocks(columns);
        case Format::mxfp4:
            return bytes + elements / kMxBlock;
    }
    return 0;
}

double distinct_experts(const Shape& s, double rows) {
    const double share = 1.0 * s.experts_per_token / s.experts;
    return s.experts * (1 - std::pow(1 - share, rows));
}

Traffic step_traffic(const Shape& s, const TrafficCase& at) {
    Traffic t;
    const double live = at.experts > 0 ? at.experts : distinct_experts(s, at.rows);
    for (uint32_t i = 0; i < s.layers; ++i) {
        const AttentionShape& a = s.attention(i);
        t.norms += 4.0 * s.hidden;
        t.qkv += matrix_bytes(stored_format(s, Linear::qkv, i), qkv_rows(a, at.ranks), s.hidden);
        t.output += matrix_bytes(stored_format(s, Linear::output, i), s.hidden,
                                 1.0 * a.o_columns() / at.ranks);
        const double keys = a.window > 0 ? std::min<double>(at.context, a.window) : at.context;
        t.cache += keys * key_bytes(a, at.ranks);
        const auto feed_forward = [&](Linear linear, double width) {
            const Format format = stored_format(s, linear, i);
            return 2 * matrix_bytes(format, width / at.ranks, s.hidden) +
                   matrix_bytes(format, s.hidden, width / at.ranks);
        };
        if (!s.is_moe[i]) {
            t.dense += feed_forward(Linear::dense, s.dense_width);
            continue;
        }
        t.router += matrix_bytes(Format::f32, s.experts, s.hidden);
        t.experts += live * feed_forward(Linear::expert, s.expert_width);
    }
    t.norms += 2.0 * s.hidden;
    t.head = matrix_bytes(Format::bf16, 1.0 * s.vocab / at.ranks, s.hidden);
    return t;
}

StepBytes::StepBytes(const Shape& s, uint32_t ranks) {
    const Traffic one = step_traffic(s, {.rows = 1, .context = 0, .experts = 1, .ranks = ranks});
    an_expert_ = one.experts;
    fixed_ = one.total() - one.experts;
    for (uint32_t i = 0; i < s.layers; ++i)
        caches_.push_back({s.attention(i).window, key_bytes(s.attention(i), ranks)});
}

double StepBytes::operator()(uint32_t context, double experts) const {
    double bytes = fixed_ + experts * an_expert_;
    for (const Cache& cache : caches_) {
        const uint32_t keys = cache.window > 0 ? std::min(context, cache.window) : context;
        bytes += keys * cache.key_bytes;
    }
    return bytes;
}

double drafter_bytes(const DrafterShape& d) {
    const AttentionShape& a = d.attention;
    const double attention =
        1.0 * d.hidden * (a.q_rows() + a.k_rows() + a.v_rows() + a.o_columns());
    const double layer = attention + 3.0 * d.hidden * d.width;
    return 2 * (d.layers * layer + 1.0 * d.hidden * d.hidden * static_cast<double>(d.taps.size()));
}

double step_multiplications(const Shape& s, const TrafficCase& at) {
    double sum = 0;
    for (uint32_t i = 0; i < s.layers; ++i) {
        const AttentionShape& a = s.attention(i);
        const double keys = a.window > 0 ? std::min<double>(at.context, a.window) : at.context;
        sum += qkv_rows(a, at.ranks) * s.hidden + 1.0 * s.hidden * a.o_columns() / at.ranks;
        sum += keys * a.heads / at.ranks * (a.head_dim + a.v_head_dim);
        if (s.is_moe[i]) {
            sum += 1.0 * s.experts * s.hidden +
                   3.0 * s.experts_per_token * s.expert_width / at.ranks * s.hidden;
        } else {
            sum += 3.0 * s.dense_width / at.ranks * s.hidden;
        }
    }
    return at.rows * (sum + 1.0 * s.vocab / at.ranks * s.hidden);
}

}  // namespace tessera
