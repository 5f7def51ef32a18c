// The loader: one thread that streams the pages of weights which its block's consumers will want, in
// their order, as far ahead as the ring is deep. Weights are never waited for, whatever the
// consumers still wait for, except those of experts: which they are is known once the rows are
// routed.
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
    __device__ explicit Loader(Block& block) : b_(block), policy_(evict_first()) {}

    __device__ __forceinline__ void run(uint32_t begin, uint32_t end) {
#pragma unroll 1
        for (uint32_t i = begin; i < end; ++i) {
            const Phase p = b_.phases[i];
            if (p.matrix.data == nullptr) continue;
            if (b_.routes(p, i)) {
                wait(b_.routed(), b_.routed_turn, Awaited::kRouting, b_.distress());
                b_.routed_turn ^= 1;
            }
            stream(p, i);
        }
    }

  private:
    // What lies in one piece of memory: all of a matrix's run, or an expert's part of it.
    struct Stretch {
        const std::byte* from;
        uint32_t count;
    };

    __device__ static Stretch stretch_of(const Phase& p, const Items& items,
                                         const Routing& routing, uint32_t slot) {
        if (!p.moe)
            return {p.matrix.data + uint64_t{items.own.begin} * p.item_bytes, items.count};
        const std::byte* const expert = p.matrix.data + routing.expert[slot] * p.expert_bytes;
        if (p.op == Op::down)
            return {expert + uint64_t{items.own.begin} * p.unit_items * p.item_bytes,
                    items.expert_units() * p.unit_items};
        const uint32_t first = slot * items.groups;
        const uint32_t begin = max(items.own.begin, first) - first;
        const uint32_t end = min(items.own.end - first, items.groups);
        return {expert + uint64_t{begin} * items.group_items * p.item_bytes,
                (end - begin) * items.group_items};
    }

    __device__ void stream(const Phase& p, uint32_t index) {
        const Routing& routing = b_.routing();
        const Items items(p, p.moe ? routing.live : 0);
        const uint32_t item_bytes = p.item_bytes, page_items = p.page_items;
        uint32_t slot =
            p.moe && p.op == Op::gate_up ? divide(items.own.begin, items.groups) : 0;
        uint32_t left = items.count;
        if (left == 0) return;
        Stretch stretch = stretch_of(p, items, routing, slot);
#pragma unroll 1
        while (left > 0) {
            const uint32_t of_page = min(page_items, left);
            left -= of_page;
            Place& place = b_.place;
            b_.ring.wait_empty(place, b_.distress());
            PageBarrier* const full = &b_.ring.full[place.slot];
            page_expect(full, of_page * item_bytes);
            std::byte* to = b_.ring.page(place);
            // Experts lie apart: a page may have several.
            for (uint32_t more = of_page; more > 0;) {
                if (stretch.count == 0) stretch = stretch_of(p, items, routing, ++slot);
                const uint32_t now = min(more, stretch.count), bytes = now * item_bytes;
                const std::byte* const from =
                    Faults::is_right(index, left == 0) ? stretch.from : p.matrix.data;
                if (Faults::comes(index, left == 0))
                    page_load_part(to, from, bytes, full, policy_);
                stretch.from += bytes;
                stretch.count -= now;
                to += bytes;
                more -= now;
            }
            place.advance(b_.ring.depth);
        }
    }

    Block& b_;
    uint64_t policy_;
};

}  // namespace tessera::gpu
