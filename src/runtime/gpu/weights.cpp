#include "runtime/gpu/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "model/traffic.h"
#include "runtime/gpu/fill.h"

namespace tessera::gpu {
namespace {

// So that no sum leaves a float's range on the way, since activations are 2^64 times what they are:
// of mxfp4 within 2^-62 and 2^62, of fp8 below 2^7.
constexpr uint8_t kScaleMin = 65, kScaleMax = 189;
constexpr float kFp8ScaleMax = 0x1p7f;

// That the kernels unpack every block of the matrix exactly.
void check_scales(const PackedMatrix& matrix, uint32_t layer) {
    const bool fp8 = matrix.format == Format::fp8;
    if (matrix.data == nullptr || (!fp8 && matrix.format != Format::mxfp4)) return;
    const uint64_t panels = uint64_t{matrix.units()} * matrix.panels();
    for (uint64_t panel = 0; panel < panels; ++panel) {
        const std::byte* const scales = matrix.data + panel * panel_bytes(matrix.format);
        for (uint32_t i = 0; fp8 && i < kUnitRows; ++i) {
            float scale;
            std::memcpy(&scale, scales + 4 * i, 4);
            if (scale < kFp8ScaleMax) continue;
            fail(
                "GPU: a matrix of layer {} has a block scale of {}; the GPU unpacks scales below "
                "{}. The "
                "CPU runs it",
                layer, scale, kFp8ScaleMax);
        }
        for (uint32_t i = 0; !fp8 && i < panel_scale_bytes(Format::mxfp4); ++i) {
            const auto scale = static_cast<uint8_t>(scales[i]);
            // 0 is what padding has; it stands for 2^-127, and what it scales becomes zero.
            if (scale == 0 || (scale >= kScaleMin && scale <= kScaleMax)) continue;
            fail(
                "GPU: an expert of layer {} has a block scale of 2^{}; the GPU unpacks scales from "
                "2^{} "
                "to 2^{}. The CPU runs it",
                layer, scale - 127, kScaleMin - 127, kScaleMax - 127);
        }
    }
}

// What a copy of an arena is on the device. A matrix is moved once: it is arranged on the way.
class Moved {
  public:
    Moved(const Arena& arena, std::byte* to)
        : from_(arena.data()), to_(to), bytes_(arena.bytes()) {}

    void operator()(PackedMatrix& matrix) const {
        std::byte* const data = at(matrix.data);
        matrix.data = data;
        if (data == nullptr) return;
        // Here rather than before the copy: reading and writing it once in the device's memory is
        // nothing beside the bus, and takes no second copy.
        check_device(arrange_panels(data, matrix.bytes(), matrix.format), "arranging weights");
    }
    void operator()(std::span<const float>& values) const {
        if (values.empty()) return;
        values = {
            reinterpret_cast<const float*>(at(reinterpret_cast<const std::byte*>(values.data()))),
            values.size()};
    }
    void operator()(PackedLayer& layer) const {
        for (auto* values : {&layer.input_norm, &layer.post_norm, &layer.sink, &layer.query_norm,
                             &layer.key_norm, &layer.correction_bias})
            (*this)(*values);
        for (PackedMatrix* matrix : {&layer.qkv, &layer.o, &layer.query, &layer.keys,
                                     &layer.dense.gate_up, &layer.dense.down, &layer.router})
            (*this)(*matrix);
        for (PackedFeedForward& expert : layer.experts) {
            (*this)(expert.gate_up);
            (*this)(expert.down);
        }
    }

  private:
    std::byte* at(const std::byte* host) const {
        if (host == nullptr) return nullptr;
        CHECK(host >= from_ && host < from_ + bytes_);
        return to_ + (host - from_);
    }

    const std::byte* from_;
    std::byte* to_;
    uint64_t bytes_;
};

std::byte* copy(const void* from, uint64_t bytes, std::vector<DeviceMemory>& memory) {
    memory.emplace_back(bytes);
    std::byte* const to = memory.back().data();
    check_device(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "copying weights");
    return to;
}

void copy_rank(const PackedWeights& weights, uint32_t rank, DeviceWeights& out) {
    const PackedRank& from = weights.ranks[rank];
    out.shape = weights.shape;
    out.ranks = static_cast<uint32_t>(weights.ranks.size());
    out.layers = from.layers;
    out.norm = from.norm;
    out.head = from.head;
    out.vocab = from.vocab;
    const Moved moved(from.arena, copy(from.arena.data(), from.arena.bytes(), out.memory));
    for (PackedLayer& layer : out.layers) moved(layer);
    moved(out.norm);
    const std::vector<bf16> gains = bf16_gains(from);
    if (!gains.empty())
        out.gains = reinterpret_cast<const bf16*>(
            copy(gains.data(), gains.size() * sizeof(bf16), out.memory));
}

}  // namespace

uint64_t DeviceWeights::bytes() const {
    uint64_t bytes = 0;
    for (const DeviceMemory& block : memory) bytes += block.bytes();
    return bytes;
}

std::vector<bf16> bf16_gains(const PackedRank& weights) {
    std::vector<bf16> gains;
    bool exact = true;
    const auto add = [&](std::span<const float> values) {
        for (const float value : values) {
            gains.push_back(to_bf16(value));
            exact &= to_float(gains.back()) == value;
        }
    };
    for (const PackedLayer& layer : weights.layers) {
        add(layer.input_norm);
        add(layer.post_norm);
    }
    add(weights.norm);
    add(weights.context_norm);
    return exact ? gains : std::vector<bf16>{};
}

DeviceWeights upload(const PackedWeights& weights, uint32_t rank) {
    for (uint32_t i = 0; i < weights.ranks[rank].layers.size(); ++i) {
        const PackedLayer& layer = weights.ranks[rank].layers[i];
        for (const PackedMatrix* matrix :
             {&layer.qkv, &layer.o, &layer.dense.gate_up, &layer.dense.down})
            check_scales(*matrix, i);
        for (const PackedFeedForward& expert : layer.experts) {
            check_scales(expert.gate_up, i);
            check_scales(expert.down, i);
        }
    }
    DeviceWeights out;
    copy_rank(weights, rank, out);
    const PackedRank& from = weights.ranks[rank];
    Moved(from.arena, out.memory.front().data())(out.head);
    out.embedding = reinterpret_cast<const bf16*>(
        copy(weights.embedding.data(), weights.embedding.size_bytes(), out.memory));
    check_device(cudaDeviceSynchronize(), "arranging weights");
    return out;
}

DeviceWeights upload_drafter(const PackedWeights& weights, const DeviceWeights& target,
                             uint32_t rank) {
    DeviceWeights out;
    copy_rank(weights, rank, out);
    const PackedRank& from = weights.ranks[rank];
    const Moved moved(from.arena, out.memory.front().data());
    out.fuse = from.fuse;
    moved(out.fuse);
    out.context_norm = from.context_norm;
    moved(out.context_norm);
    out.drafter = weights.drafter;
    out.head = target.head;
    out.embedding = target.embedding;
    std::vector<bf16> mask(weights.mask.size());
    std::ranges::transform(weights.mask, mask.begin(), to_bf16);
    out.mask =
        reinterpret_cast<const bf16*>(copy(mask.data(), mask.size() * sizeof(bf16), out.memory));
    check_device(cudaDeviceSynchronize(), "arranging weights");
    return out;
}

// ------------------------------------------------------------------ random weights

namespace {

class Maker {
  public:
    Maker(DeviceWeights& out, uint64_t seed) : out_(out), seed_(seed) {}

    PackedMatrix matrix(Format format, uint32_t rows, uint32_t columns) {
        PackedMatrix m{format, rows, columns, nullptr};
        m.data = panels(m, 1);
        return m;
    }

    // `count` of the same, one behind the other.
    std::byte* panels(const PackedMatrix& m, uint32_t count) {
        std::byte* const data = take(m.bytes() * count);
        check_device(fill_panels(data, m.bytes() * count, m.format,
                                 std::sqrt(3.0f / static_cast<float>(m.columns)), seed_++),
                     "filling weights");
        return data;
    }

    std::span<const float> floats(const std::vector<float>& values) {
        std::byte* const to = take(values.size() * sizeof(float));
        check_device(
            cudaMemcpy(to, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice),
            "copying gains");
        return {reinterpret_cast<const float*>(to), values.size()};
    }
    std::span<const float> ones(uint32_t count) { return floats(std::vector<float>(count, 1.0f)); }
    // As bf16_gains: of `norms` norms.
    const bf16* gains(uint32_t norms, uint32_t hidden) {
        const std::vector<bf16> ones(size_t{norms} * hidden, to_bf16(1.0f));
        return reinterpret_cast<const bf16*>(
            copy(ones.data(), ones.size() * sizeof(bf16), out_.memory));
    }

    const bf16* rows(uint64_t count) {
        std::byte* const to = take(count * sizeof(bf16));
        check_device(fill_bf16(to, count, 1.0f, seed_++), "filling rows");
        return reinterpret_cast<const bf16*>(to);
    }

    PackedFeedForward dense(Format format, uint32_t width, uint32_t hidden) {
        return {matrix(format, 2 * width, hidden), matrix(format, hidden, width)};
    }

    std::span<const float> sinks(const AttentionShape& a, uint32_t heads) {
        return a.sink ? floats(std::vector<float>(heads, 0.5f)) : std::span<const float>{};
    }

  private:
    std::byte* take(uint64_t bytes) {
        out_.memory.emplace_back(bytes);
        return out_.memory.back().data();
    }

    DeviceWeights& out_;
    uint64_t seed_;
};

uint32_t rotary_rows(const AttentionShape& a, const AttentionPart& part) {
    return part.heads.count() * a.head_dim + part.kv_heads.count() * (a.head_dim + a.v_head_dim);
}

}  // namespace

DeviceWeights random_weights(const Shape& s, uint32_t ranks, uint32_t experts, uint64_t seed) {
    DeviceWeights out;
    out.shape = s;
    out.ranks = ranks;
    Maker make(out, seed);
    out.vocab = share(s.vocab, 0, ranks);
    for (uint32_t i = 0; i < s.layers; ++i) {
        const AttentionShape& a = s.attention(i);
        const AttentionPart part = attention_part(a, 0, ranks);
        PackedLayer& layer = out.layers.emplace_back();
        layer.input_norm = make.ones(s.hidden);
        layer.post_norm = make.ones(s.hidden);
        layer.sink = make.sinks(a, part.heads.count());
        layer.qkv = make.matrix(stored_format(s, Linear::qkv, i), rotary_rows(a, part), s.hidden);
        layer.o = make.matrix(stored_format(s, Linear::output, i), s.hidden,
                              part.heads.count() * a.v_head_dim);
        if (!s.is_moe[i]) {
            layer.dense =
                make.dense(stored_format(s, Linear::dense, i), s.dense_width / ranks, s.hidden);
            continue;
        }
        layer.router = make.matrix(stored_format(s, Linear::router, i), s.experts, s.hidden);
        // Who is not wanted is never among the best.
        std::vector<float> bias(s.experts, -10.0f);
        for (uint32_t e = 0; e < experts; ++e) bias[uint64_t{e} * s.experts / experts] = 0;
        layer.correction_bias = make.floats(bias);
        const Format format = stored_format(s, Linear::expert, i);
        const uint32_t width = s.expert_width / ranks;
        PackedFeedForward first{{format, 2 * width, s.hidden, nullptr},
                                {format, s.hidden, width, nullptr}};
        first.gate_up.data = make.panels(first.gate_up, s.experts);
        first.down.data = make.panels(first.down, s.experts);
        for (uint32_t e = 0; e < s.experts; ++e) {
            PackedFeedForward& expert = layer.experts.emplace_back(first);
            expert.gate_up.data += e * first.gate_up.bytes();
            expert.down.data += e * first.down.bytes();
        }
    }
    out.norm = make.ones(s.hidden);
    out.gains = make.gains(2 * s.layers + 1, s.hidden);
    out.head = make.matrix(stored_format(s, Linear::head, 0), out.vocab.count(), s.hidden);
    out.embedding = make.rows(uint64_t{s.vocab} * s.hidden);
    check_device(cudaDeviceSynchronize(), "filling weights");
    return out;
}

DeviceWeights random_drafter(const DrafterShape& drafter, const DeviceWeights& target,
                             uint64_t seed) {
    const uint32_t ranks = target.ranks, hidden = drafter.hidden;
    DeviceWeights out;
    out.shape = layers_of(drafter, target.shape);
    out.ranks = ranks;
    out.drafter = drafter;
    Maker make(out, seed);
    const AttentionShape& a = drafter.attention;
    const AttentionPart part = attention_part(a, 0, ranks);
    for (uint32_t i = 0; i < drafter.layers; ++i) {
        PackedLayer& layer = out.layers.emplace_back();
        layer.input_norm = make.ones(hidden);
        layer.post_norm = make.ones(hidden);
        layer.query_norm = make.ones(a.head_dim);
        layer.key_norm = make.ones(a.head_dim);
        layer.sink = make.sinks(a, part.heads.count());
        layer.query = make.matrix(Format::bf16, part.heads.count() * a.head_dim, hidden);
        layer.keys =
            make.matrix(Format::bf16, part.kv_heads.count() * (a.head_dim + a.v_head_dim), hidden);
        layer.o = make.matrix(Format::bf16, hidden, part.heads.count() * a.v_head_dim);
        layer.dense = make.dense(Format::bf16, drafter.width / ranks, hidden);
    }
    const auto taps = static_cast<uint32_t>(drafter.taps.size());
    out.fuse = make.matrix(Format::bf16, hidden, taps * hidden / ranks);
    out.context_norm = make.ones(hidden);
    out.norm = make.ones(hidden);
    out.gains = make.gains(2 * drafter.layers + 2, hidden);
    out.mask = make.rows(hidden);
    out.head = target.head;
    out.embedding = target.embedding;
    out.vocab = target.vocab;
    check_device(cudaDeviceSynchronize(), "filling weights");
    return out;
}

}  // namespace tessera::gpu
