// The tensors that a checkpoint of a given shape must have: names, dtypes and shapes as published
// (docs of the family: mimo_v2 tensor listings). One list serves the binder, `inspect` and the
// cross-check against the published totals.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors.h"
#include "model/shape.h"

namespace tessera {

// What a tensor belongs to: the rows of `inspect`'s table.
enum class Part : uint8_t {
    embedding,
    head,
    norms,
    qkv,
    o_proj,
    router,
    dense,
    experts,
    mtp,
    drafter
};
inline constexpr Part kParts[] = {Part::embedding, Part::head,   Part::norms, Part::qkv,
                                  Part::o_proj,    Part::router, Part::dense, Part::experts,
                                  Part::mtp,       Part::drafter};
std::string_view part_name(Part part);

struct RequiredTensor {
    std::string name;
    Part part;
    std::vector<Dtype> dtypes;    // any of these; the first is what the main release has
    std::vector<uint64_t> shape;  // empty: does not happen
    uint64_t padded_rows = 0;     // when not 0, that many rows are accepted too (the excess unread)

    uint64_t elements() const;
    uint64_t bytes() const { return elements() * dtype_bytes(dtypes.front()); }
};

// Every tensor that a step of the target reads, in order of layers.
std::vector<RequiredTensor> target_inventory(const Shape& shape);

// The multi-token-prediction layers that releases carry and this engine skips; for totals only.
inline constexpr uint32_t kMtpLayers = 3;
std::vector<RequiredTensor> mtp_inventory(const Shape& shape, uint32_t layers = kMtpLayers);

// The tensors of dflash/model.safetensors.
std::vector<RequiredTensor> drafter_inventory(const DrafterShape& drafter);

// Whether a tensor is of a kind that this engine skips: MTP layers, vision, audio.
bool is_skipped(std::string_view name);

}  // namespace tessera
