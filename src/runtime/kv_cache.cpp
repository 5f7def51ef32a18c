#include "runtime/kv_cache.h"

#include <cstring>

#include "base/topology.h"

namespace tessera {

KvCache::KvCache(const Shape& shape, uint32_t ranks, uint32_t context)
    : layers_(shape.layers), context_(context) {
    const uint32_t chunks = (context + kChunkKeys - 1) / kChunkKeys;
    const Topology here = topology();
    for (uint32_t rank = 0; rank < ranks; ++rank) {
        uint64_t page_bytes = 0, ring_bytes = 0;
        for (uint32_t i = 0; i < shape.layers; ++i) {
            const AttentionShape& a = shape.attention(i);
            const bool paged = a.window == 0;
            // 16 more: the window's first key may lie anywhere in its tile.
            const uint32_t ring =
                paged ? kChunkKeys : padded(a.window + kStepRowsMax + kUnitRows, kUnitRows);
            const uint64_t key_bytes =
                Arena::taken(key_tile_elements(a.head_dim) * (ring / kUnitRows) * sizeof(bf16));
            const uint64_t head_bytes =
                key_bytes + Arena::taken(value_row_elements(a.v_head_dim) * ring * sizeof(bf16));
            uint64_t& bytes = paged ? page_bytes : ring_bytes;
            places_.push_back({paged, ring, bytes, head_bytes, key_bytes});
            bytes += head_bytes * attention_part(a, rank, ranks).kv_heads.count();
        }
        rings_.emplace_back(ring_bytes, memory_node(here, rank, ranks));
        page_memory_.emplace_back(page_bytes * chunks, memory_node(here, rank, ranks));
        std::vector<std::byte*>& pages = pages_.emplace_back();
        for (uint32_t chunk = 0; chunk < chunks; ++chunk)
            pages.push_back(page_memory_.back().take(page_bytes));
    }
}

void KvCache::fill_random(uint32_t length, uint64_t seed) {
    uint64_t state = seed;
    const auto fill = [&](std::byte* begin, uint64_t bytes) {
        auto* const values = reinterpret_cast<bf16*>(begin);
        for (uint64_t i = 0; i < bytes / sizeof(bf16); ++i) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            values[i] = to_bf16(static_cast<float>(static_cast<int64_t>(state) >> 40) * 0x1p-24f);
        }
    };
    for (uint32_t rank = 0; rank < pages_.size(); ++rank) {
        fill(rings_[rank].data(), rings_[rank].bytes());
        const uint32_t chunks = (length + kChunkKeys - 1) / kChunkKeys;
        const uint64_t page_bytes = page_memory_[rank].bytes() / pages_[rank].size();
        for (uint32_t chunk = 0; chunk < chunks; ++chunk) fill(pages_[rank][chunk], page_bytes);
    }
}

uint64_t KvCache::ring_bytes() const {
    uint64_t bytes = 0;
    for (const Arena& ring : rings_) bytes += ring.bytes();
    return bytes;
}

void KvCache::save_rings(std::byte* memory) const {
    for (const Arena& ring : rings_) {
        if (ring.bytes() > 0) std::memcpy(memory, ring.data(), ring.bytes());
        memory += ring.bytes();
    }
}

void KvCache::load_rings(const std::byte* memory) {
    for (Arena& ring : rings_) {
        if (ring.bytes() > 0) std::memcpy(ring.data(), memory, ring.bytes());
        memory += ring.bytes();
    }
}

}  // namespace tessera
