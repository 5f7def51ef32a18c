#include "weights/bind.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <string>

#include <fmt/format.h>

#include "base/check.h"
#include "base/error.h"
#include "base/log.h"
#include "base/numbers.h"
#include "base/threads.h"
#include "weights/binder.h"

namespace tessera {
namespace {

std::string shape_text(const std::vector<uint64_t>& shape) {
    return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string dtypes_text(const std::vector<Dtype>& dtypes) {
    std::string text;
    for (const Dtype dtype : dtypes)
        text += (text.empty() ? "" : " or ") + std::string(dtype_name(dtype));
    return text;
}

// ------------------------------------------------------------------ names, dtypes, shapes

void check_tensor(const RequiredTensor& required, const Tensor& found) {
    if (std::ranges::find(required.dtypes, found.dtype) == required.dtypes.end()) {
        fail("tensor {}: expected dtype {}, found {}", required.name, dtypes_text(required.dtypes),
             dtype_name(found.dtype));
    }
    std::vector<uint64_t> padded = required.shape;
    if (required.padded_rows > padded[0]) padded[0] = required.padded_rows;
    if (found.shape != required.shape && found.shape != padded) {
        fail("tensor {}: expected shape {}, found {}", required.name, shape_text(required.shape),
             shape_text(found.shape));
    }
}

// ------------------------------------------------------------------ fused and separate rows

// `rows` rows of a fused matrix: an equal run in each chunk, `offset` rows into it.
Matrix part(const Matrix& fused, uint32_t chunks, uint32_t offset, uint32_t rows) {
    Matrix part = fused;
    part.rows = rows;
    part.part_rows = rows / chunks;
    part.chunk_rows = fused.rows / chunks;
    part.chunk_offset = offset;
    return part;
}

void bind_attention(const Binder& binder, const std::string& module, const Shape& shape,
                    const AttentionShape& a, LayerWeights& layer) {
    const uint32_t hidden = shape.hidden;
    if (shape.fused_qkv) {
        const Matrix fused =
            binder.matrix(module + ".qkv_proj", a.q_rows() + a.k_rows() + a.v_rows(), hidden);
        const uint32_t chunks = shape.qkv_chunks();
        layer.q = part(fused, chunks, 0, a.q_rows());
        layer.k = part(fused, chunks, a.q_rows() / chunks, a.k_rows());
        layer.v = part(fused, chunks, (a.q_rows() + a.k_rows()) / chunks, a.v_rows());
    } else {
        layer.q = binder.matrix(module + ".q_proj", a.q_rows(), hidden);
        layer.k = binder.matrix(module + ".k_proj", a.k_rows(), hidden);
        layer.v = binder.matrix(module + ".v_proj", a.v_rows(), hidden);
    }
    layer.o = binder.matrix(module + ".o_proj", hidden, a.o_columns());
    if (a.sink) layer.sink = binder.vector(module + ".attention_sink_bias");
}

float scale_at(const std::byte* scales, uint64_t index) {
    float scale;
    std::memcpy(&scale, scales + 4 * index, 4);  // a mapping promises no alignment
    return scale;
}

// ------------------------------------------------------------------ scales under trust

void check_scales_of(const RequiredTensor& required, const Tensor& tensor) {
    const uint64_t columns = required.shape.back();
    const auto refuse = [&](uint64_t index, const std::string& found) {
        fail("tensor {}: the scale at row {}, column {} is {}, expected a finite number",
             required.name, index / columns, index % columns, found);
    };
    if (required.name.ends_with(".weight_scale")) {
        const auto bytes = tensor.bytes;
        const auto nan = std::ranges::find(bytes, std::byte{kE8m0NaN});
        if (nan != bytes.end()) refuse(static_cast<uint64_t>(nan - bytes.begin()), "NaN (255)");
    }
    if (required.name.ends_with(".weight_scale_inv")) {
        for (uint64_t i = 0; i < required.elements(); ++i) {
            const float scale = scale_at(tensor.bytes.data(), i);
            if (!(scale >= 0 && scale <= std::numeric_limits<float>::max()))
                refuse(i, fmt::format("{}", scale));
        }
    }
}

constexpr uint64_t kPageBytes = 4096;

// Reads one byte of every page; the sum keeps the loads.
uint8_t touch(std::span<const std::byte> bytes) {
    uint8_t sum = 0;
    for (uint64_t at = 0; at < bytes.size(); at += kPageBytes) {
        sum = static_cast<uint8_t>(sum + std::to_integer<uint8_t>(bytes[at]));
    }
    return sum;
}

}  // namespace

uint64_t Matrix::row_bytes() const {
    return uint64_t{columns} * element_bits(format) / 8;
}

uint64_t Matrix::scale_row(uint32_t row) const {
    const uint64_t chunk_scale_rows = (chunk_rows + kFp8Block - 1) / kFp8Block;
    return row / part_rows * chunk_scale_rows + (chunk_offset + row % part_rows) / kFp8Block;
}

std::span<const std::byte> Matrix::stored_scales() const {
    if (scales == nullptr) return {};
    if (format == Format::mxfp4) {
        const uint64_t end = stored_row(rows - 1) + 1;
        return {scales, end * (columns / kMxBlock)};
    }
    const uint64_t blocks = (columns + kFp8Block - 1) / kFp8Block;
    return {scales, (scale_row(rows - 1) + 1) * blocks * sizeof(float)};
}

void dequantize_row(const Matrix& matrix, uint32_t row, std::span<float> out) {
    CHECK(row < matrix.rows && out.size() == matrix.columns);
    const uint64_t stored = matrix.stored_row(row);
    const std::byte* data = matrix.data + stored * matrix.row_bytes();
    switch (matrix.format) {
        case Format::f32:
            std::memcpy(out.data(), data, 4 * out.size());
            return;
        case Format::bf16:
            for (size_t i = 0; i < out.size(); ++i) {
                bf16 value;
                std::memcpy(&value, data + 2 * i, 2);
                out[i] = to_float(value);
            }
            return;
        case Format::fp8: {
            static const auto kTable = [] {
                std::array<float, 256> table;
                for (uint32_t i = 0; i < 256; ++i)
                    table[i] = e4m3_to_float(static_cast<uint8_t>(i));
                return table;
            }();
            const uint64_t blocks = (matrix.columns + kFp8Block - 1) / kFp8Block;
            const uint64_t first = matrix.scale_row(row) * blocks;
            for (size_t i = 0; i < out.size(); ++i) {
                const float scale = scale_at(matrix.scales, first + i / kFp8Block);
                out[i] = round_bf16(kTable[std::to_integer<uint8_t>(data[i])] * scale);
            }
            return;
        }
        case Format::mxfp4: {
            const std::byte* scales = matrix.scales + stored * (matrix.columns / kMxBlock);
            for (size_t block = 0; block < out.size() / kMxBlock; ++block) {
                const float scale = e8m0_to_float(std::to_integer<uint8_t>(scales[block]));
                for (size_t i = block * kMxBlock; i < (block + 1) * kMxBlock; i += 2) {
                    const auto pair =
                        std::to_integer<uint8_t>(data[i / 2]);  // the low nibble comes first
                    out[i] = kE2m1[pair & 15] * scale;
                    out[i + 1] = kE2m1[pair >> 4] * scale;
                }
            }
            return;
        }
    }
}

uint64_t check_tensors(const Checkpoint& checkpoint, const std::vector<RequiredTensor>& inventory) {
    if (!checkpoint.complete()) {
        fail("{}: incomplete: {}{}", checkpoint.folder.string(), checkpoint.missing.front(),
             checkpoint.missing.size() > 1
                 ? fmt::format(" and {} more", checkpoint.missing.size() - 1)
                 : "");
    }
    std::set<std::string_view> names;
    uint64_t bytes = 0;
    for (const RequiredTensor& required : inventory) {
        const auto found = checkpoint.tensors.find(required.name);
        if (found == checkpoint.tensors.end()) {
            fail("tensor {} is missing: expected {} {}", required.name,
                 dtype_name(required.dtypes.front()), shape_text(required.shape));
        }
        check_tensor(required, found->second);
        names.insert(required.name);
        bytes += found->second.bytes.size();
    }
    uint64_t skipped = 0;
    for (const auto& [name, tensor] : checkpoint.tensors) {
        if (names.contains(name)) continue;
        if (!is_skipped(name)) {
            fail("tensor {} is unexpected: {} {}; the config does not ask for it", name,
                 dtype_name(tensor.dtype), shape_text(tensor.shape));
        }
        ++skipped;
    }
    if (skipped > 0)
        spdlog::info("skipped {} tensors of MTP, vision or audio: not used here", skipped);
    return bytes;
}

Weights bind(const Checkpoint& checkpoint, const Shape& shape) {
    Weights weights{};
    weights.shape = shape;
    weights.bytes = check_tensors(checkpoint, target_inventory(shape));
    const Binder binder(checkpoint);
    weights.embedding = binder.matrix("model.embed_tokens", shape.vocab, shape.hidden);
    weights.head = binder.matrix("lm_head", shape.vocab, shape.hidden);
    weights.norm = binder.vector("model.norm.weight");
    for (uint32_t i = 0; i < shape.layers; ++i) {
        const std::string at = "model.layers." + std::to_string(i);
        LayerWeights& layer = weights.layers.emplace_back();
        layer.input_norm = binder.vector(at + ".input_layernorm.weight");
        layer.post_norm = binder.vector(at + ".post_attention_layernorm.weight");
        bind_attention(binder, at + ".self_attn", shape, shape.attention(i), layer);
        if (!shape.is_moe[i]) {
            layer.dense = binder.feed_forward(at + ".mlp", shape.dense_width, shape.hidden);
            continue;
        }
        layer.router = binder.matrix(at + ".mlp.gate", shape.experts, shape.hidden);
        layer.correction_bias = binder.vector(at + ".mlp.gate.e_score_correction_bias");
        for (uint32_t e = 0; e < shape.experts; ++e) {
            layer.experts.push_back(binder.feed_forward(at + ".mlp.experts." + std::to_string(e),
                                                        shape.expert_width, shape.hidden));
        }
    }
    return weights;
}

void check_scales(const Checkpoint& checkpoint, const Shape& shape, uint32_t threads) {
    const std::vector<RequiredTensor> inventory = target_inventory(shape);
    parallel_for(inventory.size(), threads, [&](size_t i) {
        check_scales_of(inventory[i], checkpoint.tensors.at(inventory[i].name));
    });
}

void read_through(const Checkpoint& checkpoint, const Shape& shape, uint32_t threads,
                  const std::function<void(uint64_t, uint64_t)>& progress) {
    check_scales(checkpoint, shape, threads);
    const std::vector<RequiredTensor> inventory = target_inventory(shape);
    uint64_t total = 0;
    for (const RequiredTensor& required : inventory)
        total += checkpoint.tensors.at(required.name).bytes.size();
    std::atomic<uint64_t> done = 0;
    std::atomic<uint8_t> kept = 0;
    std::mutex drawing;
    parallel_for(inventory.size(), threads, [&](size_t i) {
        const Tensor& tensor = checkpoint.tensors.at(inventory[i].name);
        kept += touch(tensor.bytes);
        const uint64_t now = done += tensor.bytes.size();
        if (!progress) return;
        const std::unique_lock lock(drawing,
                                    std::try_to_lock);  // whoever is late leaves it to the next
        if (lock && now < total) progress(now, total);
    });
    if (progress) progress(total, total);
}

}  // namespace tessera
