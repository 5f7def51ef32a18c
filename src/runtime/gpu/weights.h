// Weights in the device's memory, in the CPU's tile order but for the bits of mxfp4 and fp8
// (tiles/e2m1_gpu.h, e4m3_gpu.h).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/gpu/device.h"
#include "weights/pack.h"

namespace tessera::gpu {

// One rank's share. Spans and matrices are the device's: nothing here may be read by the host.
struct DeviceWeights {
    Shape shape;
    uint32_t ranks = 1;
    std::vector<PackedLayer> layers;
    std::span<const float> norm;
    PackedMatrix head;
    Span vocab;                       // its share
    const bf16* embedding = nullptr;  // vocab, hidden

    // Of a drafter, whose embedding and head are the target's.
    std::optional<DrafterShape> drafter;
    PackedMatrix fuse;
    std::span<const float> context_norm;
    const bf16* mask = nullptr;  // hidden

    const bf16* gains = nullptr;  // as bf16_gains, or null

    std::vector<DeviceMemory> memory;  // that all this lies in

    uint64_t bytes() const;
};

// The gains of all norms as bf16, a row of hidden values each: of every layer input_norm and
// post_norm, then norm, then context_norm. Empty if one of them is no bf16 value.
std::vector<bf16> bf16_gains(const PackedRank& weights);

// Copies a rank of packed weights to the device. Throws Error if they do not fit, or if a scale of
// its experts is beyond what the kernels unpack exactly (matrix_gpu.cuh).
DeviceWeights upload(const PackedWeights& weights, uint32_t rank);
DeviceWeights upload_drafter(const PackedWeights& weights, const DeviceWeights& target,
                             uint32_t rank);

// Random weights of one rank's share, made on the device: for measuring, at shapes that no host
// holds. Values keep a forward pass in ordinary numbers. `experts` of a layer can be chosen, spread
// over all.
DeviceWeights random_weights(const Shape& shape, uint32_t ranks, uint32_t experts, uint64_t seed);
DeviceWeights random_drafter(const DrafterShape& drafter, const DeviceWeights& target,
                             uint64_t seed);

}  // namespace tessera::gpu
