// The loader: one thread that streams the pages of weights which its block's consumers will want, in
// their order, as far ahead as the ring is deep. Weights are never waited for, whatever the consumers
// still wait for, except those of experts: which they are is known once the rows are routed.
#pragma once

#include "runtime/gpu/block.cuh"

namespace tessera::gpu {

class Loader {
  public:
    __device__ explicit Loader(Block& block) : b_(block), policy_(evict_first()) {}

    __device__ __forceinline__ void run(uint32_t begin, uint32_t end) {
        for (uint32_t i = begin; i < end; ++i) {
            const Phase p = b_.phases[i];
            if (p.matrix.data == nullptr) continue;
            if (b_.routes(p, i)) {
                wait(b_.routed(), routed_, Awaited::kFullPage, b_.distress());
                routed_ ^= 1;
            }
            if (!p.moe) {
                const Range range = Cut(p).range(blockIdx.x, gridDim.x);
                stream(p, p.matrix.data, range);
            } else if (p.op == Op::gate_up) {
                gate_up(p);
            } else {
                down(p);
            }
        }
    }

  private:
    // Panels in full pages, the last one cut short.
    __device__ void stream(const Phase& p, const std::byte* matrix, Range panels) {
        for (uint32_t at = panels.begin; at < panels.end; at += p.page_panels) {
            const uint32_t count = min(p.page_panels, panels.end - at);
            b_.ring.wait_empty(b_.place, b_.distress());
            page_load(b_.ring.page(b_.place), matrix + uint64_t{at} * p.panel_bytes,
                      count * p.panel_bytes, &b_.ring.full[b_.place.slot], policy_);
            b_.place.advance(b_.ring.depth);
        }
    }

    __device__ const std::byte* expert(const Phase& p, uint32_t slot) const {
        return p.matrix.data + b_.routing().expert[slot] * p.expert_bytes;
    }

    __device__ void gate_up(const Phase& p) {
        const uint32_t panels = 2 * p.matrix.panels(), pairs = p.matrix.units() / 2;
        const Range own = share_of(b_.routing().live * pairs, blockIdx.x, gridDim.x);
        for (uint32_t i = own.begin; i < own.end; ++i)
            stream(p, expert(p, i / pairs), {i % pairs * panels, (i % pairs + 1) * panels});
    }

    // The same units of every live expert; small runs share a page.
    __device__ void down(const Phase& p) {
        const Range units = share_of(p.matrix.units(), blockIdx.x, gridDim.x);
        const uint32_t run = (units.end - units.begin) * p.matrix.panels();
        if (run == 0) return;
        const uint32_t first = units.begin * p.matrix.panels();
        const uint32_t bytes = run * p.panel_bytes, together = p.page_panels / run;
        const uint32_t live = b_.routing().live;
        for (uint32_t slot = 0; slot < live;) {
            if (together == 0) {
                stream(p, expert(p, slot++), {first, first + run});
                continue;
            }
            const uint32_t count = min(together, live - slot);
            b_.ring.wait_empty(b_.place, b_.distress());
            PageBarrier* const full = &b_.ring.full[b_.place.slot];
            arrive_expecting(full, count * bytes);
            for (uint32_t i = 0; i < count; ++i)
                page_part(b_.ring.page(b_.place) + i * bytes,
                          expert(p, slot + i) + uint64_t{first} * p.panel_bytes, bytes, full, policy_);
            b_.place.advance(b_.ring.depth);
            slot += count;
        }
    }

    Block& b_;
    uint64_t policy_;
    uint32_t routed_ = 0;  // parity of the next routing
};

}  // namespace tessera::gpu
