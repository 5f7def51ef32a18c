// The loader: one thread that streams the pages of weights which its block's consumers will want,
// in their order, as far ahead as the ring is deep. Weights are never waited for, whatever the
// consumers still wait for, except those of experts: which they are is known once the rows are
// routed.
#pragma once

#include "runtime/gpu/block.cuh"

namespace tessera::gpu {

// A machine that does everything right.
struct NoFaults {
    static constexpr bool kWatches = false;  // whether the consumers time what their loops wait for
    static constexpr bool kEveryLane = false;  // as Block has it
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
    // Items that lie one behind the other, the second units of a bundle as far behind the first.
    struct Stretch {
        const std::byte* from;
        uint32_t count;
    };

    // The block's stretch `index`: a bundle where that has two units, of experts' down an expert's
    // part, else all there is.
    __device__ static Stretch stretch_of(const Phase& p, const Items& items, const Routing& routing,
                                         uint32_t index) {
        const std::byte* from = p.matrix.data;
        const auto expert = [&](uint32_t slot) { return routing.expert[slot] * p.expert_bytes; };
        if (p.moe && p.op == Op::down)
            return {from + expert(index) + uint64_t{items.own.begin} * p.unit_bytes(),
                    items.expert_units() * items.per_bundle};
        if (p.item_units == 1)
            return {from + uint64_t{items.own.begin} * p.item_bytes, items.count};
        uint32_t bundle = items.first + index;
        const uint32_t before = index == 0 ? items.before : 0;
        if (p.moe) {
            const uint32_t pair = items.own.begin + index, slot = divide(pair, items.groups);
            from += expert(slot);
            bundle = pair - slot * items.groups;
        }
        return {from + uint64_t{2 * bundle} * p.unit_bytes() + before * p.item_bytes,
                items.per_bundle - before};
    }

    __device__ void stream(const Phase& p, uint32_t index) {
        const Routing& routing = b_.routing();
        const Items items(p, p.moe ? routing.live : 0);
        Stretch stretch{};
        uint32_t next = 0;  // stretch
#pragma unroll 1
        for (uint32_t left = items.count; left > 0;) {
            const uint32_t of_page = min(p.page_items, left);
            left -= of_page;
            b_.ring.wait_empty(b_.place, b_.distress());
            PageBarrier* const full = &b_.ring.full[b_.place.slot];
            page_expect(full, of_page * p.item_units * p.item_bytes);
            std::byte* to = b_.ring.page(b_.place);
            // A page may have parts of several.
#pragma unroll 1
            for (uint32_t more = of_page; more > 0;) {
                if (stretch.count == 0) stretch = stretch_of(p, items, routing, next++);
                const uint32_t now = min(more, stretch.count), bytes = now * p.item_bytes;
                for (uint32_t unit = 0; unit < p.item_units; ++unit) {
                    const std::byte* const from = Faults::is_right(index, left == 0)
                                                      ? stretch.from + unit * p.unit_bytes()
                                                      : p.matrix.data;
                    if (Faults::comes(index, left == 0))
                        page_load_part(to + unit * p.page_items * p.item_bytes, from, bytes, full,
                                       policy_);
                }
                stretch.from += bytes;
                stretch.count -= now;
                to += bytes;
                more -= now;
            }
            b_.place.advance(b_.ring.depth);
        }
    }

    Block& b_;
    uint64_t policy_;
};

}  // namespace tessera::gpu
