// A ring of pages in shared memory: one thread loads, warps consume. It knows where pages lie and
// whose turn a place is, not what is in them.
#pragma once

#include "runtime/gpu/primitives.cuh"
#include "tiles/rows_gpu.cuh"

namespace tessera::gpu {

// Where a loader or a consumer stands in a ring.
struct Place {
    uint32_t slot = 0;
    uint32_t parity = 0;

    __device__ void advance(uint32_t depth) {
        if (++slot < depth) return;
        slot = 0;
        parity ^= 1;
    }
    // By any number of places.
    __device__ void advance(uint32_t depth, uint32_t by) {
        const uint32_t turns = divide(slot + by, depth);
        slot += by - turns * depth;
        parity ^= turns & 1;
    }
};

struct Ring {
    std::byte* pages;    // depth, page_bytes
    PageBarrier* full;   // depth
    PageBarrier* empty;  // depth
    uint32_t depth;
    uint32_t page_bytes;  // a multiple of 128

    static constexpr __host__ __device__ uint32_t bytes(uint32_t depth, uint32_t page_bytes) {
        return depth * (page_bytes + 2 * static_cast<uint32_t>(sizeof(PageBarrier)));
    }

    // `shared` is aligned to 128 and holds bytes(depth, page_bytes).
    static __device__ Ring at(std::byte* shared, uint32_t depth, uint32_t page_bytes) {
        auto* barriers = reinterpret_cast<PageBarrier*>(shared + depth * page_bytes);
        return {shared, barriers, barriers + depth, depth, page_bytes};
    }

    // By one thread, before the block's first barrier. `consumers` arrive for each page they let
    // go.
    __device__ void init(uint32_t consumers) const {
        for (uint32_t slot = 0; slot < depth; ++slot) {
            gpu::init(&full[slot], 1);
            gpu::init(&empty[slot], consumers);
        }
        init_done();
    }

    __device__ std::byte* page(const Place& place) const { return pages + place.slot * page_bytes; }

    __device__ void wait_full(const Place& place, Distress* board) const {
        wait(&full[place.slot], place.parity, Awaited::kFullPage, board);
    }

    // The first turn finds every place empty.
    __device__ void wait_empty(const Place& place, Distress* board) const {
        wait(&empty[place.slot], place.parity ^ 1, Awaited::kEmptyPage, board);
    }

    // By one lane of a consumer warp, after the whole warp has read.
    __device__ void let_go(const Place& place) const { arrive(&empty[place.slot]); }
};

}  // namespace tessera::gpu
