// Seeded checkpoints in memory: the weights that tests/vectors/seeded.py gives to the oracles, made
// again from the tensor's name, and random bytes in the published formats. With these nearly every
// test runs without a file.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "base/numbers.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/mask_embedding.h"
#include "weights/inventory.h"

namespace tessera::test {

inline uint64_t fnv1a64(std::string_view text) {
    uint64_t value = 0xcbf29ce484222325u;
    for (const char c : text) value = (value ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
    return value;
}

// The i-th number of the stream that starts at `first`.
inline uint64_t splitmix64(uint64_t first, uint64_t i) {
    uint64_t z = first + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// Element i of the stream `name`: from -1 up to 1.
inline double seeded_unit(std::string_view name, uint64_t i, uint64_t seed) {
    const auto draw = static_cast<double>(splitmix64(fnv1a64(name) + seed, i) >> 40);
    return draw / 8388608.0 - 1;  // 2^23
}

// Element i of the published tensor `name`, last extent `columns`.
inline float seeded_value(std::string_view name, uint64_t i, uint64_t columns, uint64_t seed) {
    double unit = seeded_unit(name, i, seed);
    if (name.ends_with("norm.weight")) {
        unit = 1 + 0.25 * unit;
    } else if (name.ends_with("e_score_correction_bias")) {
        unit = 0.05 * unit;
    } else if (name.ends_with("attention_sink_bias")) {
        unit = 2 * unit;
    } else if (name != "model.embed_tokens.weight") {
        unit = unit * std::sqrt(3.0 / static_cast<double>(columns)) * 1.5;
    }
    return round_bf16(static_cast<float>(unit));
}

// `count` values of the stream `name` in the embedding's range: a mask, taps.
inline std::vector<float> seeded_rows(std::string_view name, uint64_t count, uint64_t seed) {
    std::vector<float> values(count);
    for (uint64_t i = 0; i < count; ++i)
        values[i] = round_bf16(static_cast<float>(seeded_unit(name, i, seed)));
    return values;
}

// A checkpoint whose tensors live in memory.
struct SeededCheckpoint {
    Checkpoint checkpoint;
    std::deque<std::vector<std::byte>> storage;

    std::vector<std::byte>& add(const std::string& name, Dtype dtype,
                                const std::vector<uint64_t>& shape) {
        uint64_t bytes = dtype_bytes(dtype);
        for (const uint64_t extent : shape) bytes *= extent;
        storage.emplace_back(bytes);
        checkpoint.tensors[name] = {dtype, shape, storage.back()};
        return storage.back();
    }
};

// Every tensor of the inventory: bf16 and f32 hold seeded values, e4m3 and u8 seeded bytes (no
// NaN), their scales seeded powers of two near the size of the seeded values.
inline SeededCheckpoint seeded_checkpoint(const std::vector<RequiredTensor>& inventory,
                                          uint64_t seed) {
    SeededCheckpoint made;
    for (const RequiredTensor& required : inventory) {
        const Dtype dtype = required.dtypes.front();
        std::vector<std::byte>& bytes = made.add(required.name, dtype, required.shape);
        const uint64_t start = fnv1a64(required.name) + seed;
        const bool scale =
            required.name.ends_with("weight_scale") || required.name.ends_with("weight_scale_inv");
        for (uint64_t i = 0; i < required.elements(); ++i) {
            const uint64_t draw = splitmix64(start, i);
            if (dtype == Dtype::u8) {
                bytes[i] = static_cast<std::byte>(scale ? 121 + draw % 3 : draw & 255);
            } else if (dtype == Dtype::e4m3) {
                const auto code = static_cast<uint8_t>(draw & 255);
                bytes[i] = static_cast<std::byte>((code & 127) == 127 ? code - 1 : code);
            } else {
                const float value =
                    scale ? std::ldexp(1.0f, -10 - static_cast<int>(draw % 3))
                          : seeded_value(required.name, i, required.shape.back(), seed);
                const bf16 half = to_bf16(value);
                if (dtype == Dtype::bf16) std::memcpy(&bytes[2 * i], &half, 2);
                if (dtype == Dtype::f32) std::memcpy(&bytes[4 * i], &value, 4);
            }
        }
    }
    return made;
}

inline SeededCheckpoint seeded_checkpoint(const Shape& shape, uint64_t seed) {
    return seeded_checkpoint(target_inventory(shape), seed);
}
inline SeededCheckpoint seeded_checkpoint(const DrafterShape& shape, uint64_t seed) {
    return seeded_checkpoint(drafter_inventory(shape), seed);
}

inline MaskEmbedding seeded_mask(const DrafterShape& shape, uint64_t seed) {
    MaskEmbedding mask{shape.mask_token, {}};
    for (const float value : seeded_rows("mask_embedding", shape.hidden, seed))
        mask.embedding.push_back(to_bf16(value));
    return mask;
}

}  // namespace tessera::test
