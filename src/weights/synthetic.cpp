#include "weights/synthetic.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/traffic.h"

namespace tessera {
namespace {

constexpr uint64_t kStart = uint64_t{1} << 20;  // matrices begin in the first megabyte of a pool

uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// From -1 to 1.
float unit(uint64_t seed, uint64_t i) {
    return static_cast<float>(
        static_cast<double>(mix(seed + i * 0x9e3779b97f4a7c15u) >> 11) * 0x1p-52 - 1);
}

}  // namespace

SyntheticWeights::SyntheticWeights(const Shape& s, uint64_t seed) {
    // Each pool holds the largest matrix of its format from any start; all begin at the first
    // scale.
    uint64_t largest[4] = {}, most_fp8_scales = 0;
    const auto room = [&](Format format, uint64_t rows, uint64_t columns) {
        uint64_t& bytes = largest[static_cast<size_t>(format)];
        bytes = std::max(bytes, rows * columns * element_bits(format) / 8);
        const auto blocks = [](uint64_t count) { return (count + kFp8Block - 1) / kFp8Block; };
        most_fp8_scales = std::max(most_fp8_scales, blocks(rows) * blocks(columns));
    };
    const uint64_t heads_rows = std::max(s.full.q_rows(), s.sliding.q_rows());
    const uint64_t o_columns = std::max(s.full.o_columns(), s.sliding.o_columns());
    for (const Format format : {Format::fp8, Format::bf16}) {
        room(format, heads_rows, s.hidden);
        room(format, s.hidden, o_columns);
        room(format, s.dense_width, s.hidden);
        room(format, s.expert_width, s.hidden);
    }
    room(Format::bf16, s.vocab, s.hidden);
    room(Format::f32, s.experts, s.hidden);
    room(Format::mxfp4, s.expert_width, s.hidden);
    for (size_t format = 0; format < 4; ++format) pools_[format].resize(largest[format] + kStart);

    const float size = std::sqrt(3.0f / static_cast<float>(s.hidden));
    auto* const floats = pools_[static_cast<size_t>(Format::f32)].data();
    for (uint64_t i = 0; i < pools_[static_cast<size_t>(Format::f32)].size() / 4; ++i) {
        const float value = size * unit(seed, i);
        std::memcpy(floats + 4 * i, &value, 4);
    }
    auto* const halves = pools_[static_cast<size_t>(Format::bf16)].data();
    for (uint64_t i = 0; i < pools_[static_cast<size_t>(Format::bf16)].size() / 2; ++i) {
        const bf16 value = to_bf16(size * unit(seed + 1, i));
        std::memcpy(halves + 2 * i, &value, 2);
    }
    // Codes of magnitude up to 240; the scale brings them to `size`.
    for (uint64_t i = 0; auto& byte : pools_[static_cast<size_t>(Format::fp8)])
        byte = static_cast<std::byte>(mix(seed + 2 + i++ * 0x9e3779b97f4a7c15u) % 248 & 0xf7);
    for (uint64_t i = 0; auto& byte : pools_[static_cast<size_t>(Format::mxfp4)])
        byte = static_cast<std::byte>(mix(seed + 3 + i++ * 0x9e3779b97f4a7c15u) & 255);
    fp8_scales_.resize(4 * most_fp8_scales);
    for (uint64_t i = 0; i < fp8_scales_.size() / 4; ++i) {
        const float scale = size / 80.0f * (1.0f + 0.2f * unit(seed + 4, i));
        std::memcpy(&fp8_scales_[4 * i], &scale, 4);
    }
    const auto exponent = static_cast<int>(std::floor(std::log2(size / 3.0f))) + 127;
    mxfp4_scales_.resize(std::max<uint64_t>(uint64_t{s.expert_width} * s.hidden, 1) / kMxBlock +
                         64);
    for (uint64_t i = 0; auto& byte : mxfp4_scales_)
        byte = static_cast<std::byte>(exponent + static_cast<int>(mix(seed + 5 + i++) % 2));

    weights_.shape = s;
    weights_.embedding = matrix(Format::bf16, s.vocab, s.hidden);
    weights_.head = matrix(Format::bf16, s.vocab, s.hidden);
    weights_.norm.assign(s.hidden, 1.0f);
    const auto feed_forward = [&](Linear linear, uint32_t layer, uint32_t width) {
        const Format format = stored_format(s, linear, layer);
        return FeedForward{matrix(format, width, s.hidden), matrix(format, width, s.hidden),
                           matrix(format, s.hidden, width)};
    };
    for (uint32_t i = 0; i < s.layers; ++i) {
        const AttentionShape& a = s.attention(i);
        const Format qkv = stored_format(s, Linear::qkv, i);
        LayerWeights& layer = weights_.layers.emplace_back();
        layer.input_norm.assign(s.hidden, 1.0f);
        layer.post_norm.assign(s.hidden, 1.0f);
        layer.q = matrix(qkv, a.q_rows(), s.hidden);
        layer.k = matrix(qkv, a.k_rows(), s.hidden);
        layer.v = matrix(qkv, a.v_rows(), s.hidden);
        layer.o = matrix(stored_format(s, Linear::output, i), s.hidden, a.o_columns());
        if (a.sink) layer.sink.assign(a.heads, 0.5f);
        if (!s.is_moe[i]) {
            layer.dense = feed_forward(Linear::dense, i, s.dense_width);
            continue;
        }
        layer.router = matrix(Format::f32, s.experts, s.hidden);
        layer.correction_bias.assign(s.experts, 0.0f);
        for (uint32_t e = 0; e < s.experts; ++e)
            layer.experts.push_back(feed_forward(Linear::expert, i, s.expert_width));
    }
    const Traffic all = step_traffic(s, {.rows = 1, .context = 0, .experts = 1.0 * s.experts});
    weights_.bytes =
        static_cast<uint64_t>(all.weights() + matrix_bytes(Format::bf16, s.vocab, s.hidden));
}

Matrix SyntheticWeights::matrix(Format format, uint32_t rows, uint32_t columns) {
    const uint64_t start = mix(++next_) % kStart / 64 * 64;
    Matrix m{format,  rows, columns, pools_[static_cast<size_t>(format)].data() + start,
             nullptr, rows, rows,    0};
    if (format == Format::fp8) m.scales = fp8_scales_.data();
    if (format == Format::mxfp4) m.scales = mxfp4_scales_.data();
    return m;
}

}  // namespace tessera
