// The loader: one warp that streams the pages of weights which its block's consumers will want, in
// their order, as far ahead as the ring is deep, and says with each what it is. Weights are never
// waited for, whatever the consumers still wait for, except those of experts: which they are is
// known once the rows are routed.
#pragma once

#include "runtime/gpu/block.cuh"

namespace tessera::gpu {

// A machine that does everything right.
struct NoFaults {
    static constexpr bool kWatches = false;  // whether the consumers time what their loops wait for
    // Of the barrier before a phase; of a page of it (the block's last, or not).
    static constexpr __device__ bool signals(uint32_t) { return true; }
    static constexpr __device__ bool comes(uint32_t, bool) { return true; }
    static constexpr __device__ bool is_right(uint32_t, bool) { return true; }
};

template <typename Faults>
class Loader {
  public:
    __device__ explicit Loader(Block& block)
        : b_(block), lane_(threadIdx.x % 32), policy_(evict_first()) {}

    __device__ __forceinline__ void run(uint32_t begin, uint32_t end) {
        for (uint32_t i = begin; i < end; ++i) {
            const Phase p = b_.phases[i];
            if (p.matrix.data == nullptr) continue;
            if (b_.routes(p, i)) {
                wait(b_.routed(), b_.routed_turn, Awaited::kRouting, b_.distress());
                b_.routed_turn ^= 1;
            }
            const Pages pages(p, p.moe ? b_.routing().live : 0);
            // Each lane finds out about one of 32 pages; then kTogether at a time ask for them.
            for (uint32_t first = 0; first < pages.count; first += 32) {
                Page page = pages.at(p, min(first + lane_, pages.count - 1));
                page.number = b_.pages + lane_;
                const bool last = first + lane_ + 1 == pages.count;
                const std::byte* from =
                    p.matrix.data + (p.moe ? b_.routing().expert[page.slot] * p.expert_bytes : 0) +
                    (uint64_t{page.unit} * p.unit_pieces + page.first) * p.piece_bytes;
                if (!Faults::is_right(i, last)) from = p.matrix.data;
                const uint32_t bytes = page.units * page.pieces * p.piece_bytes;
                const uint32_t count = min(32u, pages.count - first);
                Place place = b_.place;
                place.advance(b_.ring.depth, lane_);
#pragma unroll 1
                for (uint32_t turn = 0; turn < count; turn += kTogether) {
                    if (lane_ / kTogether == turn / kTogether && lane_ < count)
                        load(place, page, from, bytes, Faults::comes(i, last));
                    __syncwarp();
                }
                b_.place.advance(b_.ring.depth, count);
                b_.pages += count;
            }
        }
    }

  private:
    // Lanes that wait for places together: far fewer than the ring has.
    static constexpr uint32_t kTogether = 4;

    __device__ void load(const Place& place, const Page& page, const std::byte* from,
                         uint32_t bytes, bool comes) {
        b_.ring.wait_empty(place, b_.distress());
        Page* const label = &b_.label(place);
        const uint32_t number = page.number;
        *label = page;
        publish_in_block(&label->number, number);
        if (comes) page_load(b_.ring.page(place), from, bytes, &b_.ring.full[place.slot], policy_);
    }

    Block& b_;
    uint32_t lane_;
    uint64_t policy_;
};

}  // namespace tessera::gpu
