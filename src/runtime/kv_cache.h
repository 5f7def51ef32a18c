// Keys and values of one sequence, in bf16, on every rank. Layers that see everything keep pages of
// kChunkKeys positions; sliding layers a ring that is longer than the window by the rows of a step,
// so that rows which are rejected cost nothing: they are overwritten, and what they overwrote had
// left every window.
#pragma once

#include <cstdint>
#include <vector>

#include "base/arena.h"
#include "model/ranks.h"
#include "tiles/kernels.h"

namespace tessera {

// Rows of one step at most.
inline constexpr uint32_t kStepRowsMax = 64;

// Where position p lies: at p % ring of keys (in tiles of 16) and values.
struct KvSpan {
    bf16* keys;
    bf16* values;
    uint32_t ring;
};

class KvCache {
  public:
    // Room for `context` positions, committed as they are used. Throws Error.
    KvCache(const Shape& shape, uint32_t ranks, uint32_t context);

    // The memory of kv head `kv` (counted on the rank) that holds `position`.
    KvSpan at(uint32_t rank, uint32_t layer, uint32_t kv, uint32_t position) const {
        const Place& place = places_[rank * layers_ + layer];
        const uint64_t head = place.offset + kv * place.head_bytes;
        std::byte* const base =
            place.paged ? pages_[rank][position / kChunkKeys] + head : rings_[rank].data() + head;
        return {reinterpret_cast<bf16*>(base), reinterpret_cast<bf16*>(base + place.key_bytes),
                place.ring};
    }

    // Small seeded values for positions below `length`, for benchmarks: as if they had been read.
    void fill_random(uint32_t length, uint64_t seed);

    // The sliding layers' rings of all ranks: what later tokens overwrite. `memory` has
    // ring_bytes().
    uint64_t ring_bytes() const;
    void save_rings(std::byte* memory) const;
    void load_rings(const std::byte* memory);

    uint32_t context() const { return context_; }

  private:
    // Where a layer's heads lie in every page, or in the ring.
    struct Place {
        bool paged;
        uint32_t ring;        // positions
        uint64_t offset;      // bytes
        uint64_t head_bytes;  // keys, then values
        uint64_t key_bytes;
    };

    uint32_t layers_;
    uint32_t context_;
    std::vector<Place> places_;                   // by rank and layer
    std::vector<std::vector<std::byte*>> pages_;  // by rank and chunk
    std::vector<Arena> page_memory_, rings_;      // by rank
};

}  // namespace tessera
