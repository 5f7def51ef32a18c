// What one block has: its warps, its shared memory, its ring of weights; and how a matrix is dealt
// out to blocks.
#pragma once

#include "runtime/gpu/model.h"
#include "runtime/gpu/ring.cuh"
#include "tiles/matrix_gpu.cuh"
#include "tiles/rows_gpu.cuh"

namespace tessera::gpu {

inline constexpr uint32_t kConsumerThreads = kConsumers * 32;
inline constexpr uint32_t kBlockThreads = kConsumerThreads + 32;
inline constexpr uint32_t kUnitSums = kUnitRows * kTokens;  // of a unit: [row][token]
inline constexpr uint32_t kConsumersBarrier = 1;

// Counts of a block, in shared memory.
struct Counts {
    // By slot: warps that have left their sums of a unit, and units that have been added up there;
    // units of a group that have been, and groups that are finished there.
    uint32_t deposited[kDepositSlots], added[kDepositSlots];
    uint32_t summed[kDepositSlots], finished[kDepositSlots];
    uint32_t last;        // whether this block's arrival was the last of all blocks'
    uint32_t shared[2];   // groups of the phase that other blocks have parts of, or kNone
    uint32_t last_of[2];  // whether this block is the last of them
    uint64_t passed;      // signals of the barrier that the block's first thread has waited for
    Stamp stamp;          // of the phase
};
inline constexpr uint32_t kNone = ~0u;

// Behind the routing, with the barrier that says that it is there (phases.cpp takes the place).
static_assert(sizeof(PageBarrier) + sizeof(Counts) <= kCountsBytes);

// What lies where in the block's shared memory.
struct View {
    const Network& net;
    std::byte* memory;

    __device__ uint16_t* activations() const {
        return reinterpret_cast<uint16_t*>(memory + net.shared.activations);
    }
    __device__ float* deposits() const {
        return reinterpret_cast<float*>(memory + net.shared.deposits);
    }
    __device__ float* sums() const { return reinterpret_cast<float*>(memory + net.shared.sums); }
    __device__ float* contributions() const {
        return reinterpret_cast<float*>(memory + net.shared.contributions);
    }
    __device__ Routing& routing() const {
        return *reinterpret_cast<Routing*>(memory + net.shared.routing);
    }
    // Full when the consumers have routed; the loader of an expert waits for it.
    __device__ PageBarrier* routed() const {
        return reinterpret_cast<PageBarrier*>(memory + net.shared.routing + sizeof(Routing));
    }
    __device__ Counts& counts() const {
        return *reinterpret_cast<Counts*>(memory + net.shared.routing + sizeof(Routing) + 8);
    }
    __device__ Step& step() const { return *reinterpret_cast<Step*>(memory + net.shared.step); }

    // What the consumers know of phase `index`, and of the one before or after it.
    __device__ Phase& phase(uint32_t index) const {
        return reinterpret_cast<Phase*>(memory + net.shared.phases)[index % 2];
    }
    __device__ const Heads& heads(const Phase& p) const {
        return p.sliding ? net.sliding : net.full;
    }
    __device__ std::byte* cache_head(const Phase& p, std::byte* cache, uint32_t kv) const {
        const Heads& h = heads(p);
        return cache + p.cache.offset + kv * (p.cache.key_bytes(h) + p.cache.value_bytes(h));
    }
};

// A barrier among all consumers.
__device__ inline void sync_consumers() {
    sync_threads(kConsumersBarrier, kConsumerThreads);
}

// A page: pieces of columns of one unit, or several whole units of an expert's down. One warp has
// it to itself.
struct alignas(16) Page {
    uint32_t number;  // among all pages of the block, since the launch
    uint16_t slot;    // of experts: whose
    uint16_t units;
    uint32_t unit;    // the first
    uint32_t first;   // piece of the unit
    uint32_t pieces;  // of each unit
    // The unit's pages that this block has: which of them this is, and how many there are.
    uint32_t index, of;
    uint32_t order;  // of the unit among those that this block has pages of
};

static_assert(sizeof(Page) == 32);

struct Block : View {
    const Phase* phases;   // of the step, in the device's memory
    uint32_t first_phase;  // of this launch
    Ring ring;
    // How far this thread has come: in the ring (the loader's next page, or the phase's first), and
    // how many pages were before.
    Place place{};
    uint32_t pages = 0;
    uint32_t routed_turn = 0;  // of the loader: parity of the next routing

    // What the page in a place of the ring is.
    __device__ Page& label(const Place& at) const {
        return reinterpret_cast<Page*>(memory + net.shared.labels)[at.slot];
    }

    // Returns once page `number` has come to its place, and says what it is. The place's parity
    // alone does not do: warps have pages that are many places apart, and while the page before it
    // in the same place is still on its way, the parity that this one will have is that of the one
    // before that.
    __device__ Page wait_page(const Place& at, uint32_t number) const {
        wait_in_block(&label(at).number, number, distress());
        ring.wait_full(at, distress());
        return label(at);
    }

    __device__ Distress* distress() const { return static_cast<Distress*>(net.distress); }

    // Whether the activations (and, of experts, the routing) must be made in this phase.
    __device__ bool fresh(const Phase& p, uint32_t index) const {
        return index == first_phase || !p.keeps;
    }
    __device__ bool routes(const Phase& p, uint32_t index) const {
        return p.moe && (p.op == Op::gate_up || index == first_phase);
    }
};

static_assert(sizeof(Routing) % 8 == 0);

struct Range {
    uint32_t begin, end;
};

// Equal shares. `total` * `count` is below 2^32 (phases.cpp sees to it).
__device__ inline Range share_of(uint32_t total, uint32_t index, uint32_t count) {
    return {divide(total * index, count), divide(total * (index + 1), count)};
}

// Whose share `at` is.
__device__ inline uint32_t owner_of(uint32_t total, uint32_t at, uint32_t count) {
    return divide((at + 1) * count - 1, total);
}

// Which pages of a phase a block streams, in their order: the one place that knows, for the loader
// and the consumers. A matrix that every step needs is a run of pages, unit by unit; it is cut into
// groups of units that one epilogue needs together, a group into `cuts` parts, and a block has a
// run of parts. Of experts' gate and up a block has pairs of units, each whole; of their down the
// same units of every live expert. No sum is cut in a way that depends on the rows of a step or on
// which experts are live.
struct Pages {
    uint32_t unit_pages, group_pages;
    uint32_t groups, cuts;
    Range own;       // pages; of experts: pairs, or units
    uint32_t count;  // pages, of this block
    uint32_t units;  // that it finishes or has a part of, over all experts

    __device__ Pages(const Phase& p, uint32_t live)
        : unit_pages(p.unit_pages()),
          group_pages(unit_pages * p.group_units),
          groups(p.groups()),
          cuts(p.cuts) {
        if (!p.moe) {
            const Range parts = share_of(groups * cuts, blockIdx.x, gridDim.x);
            own = {page_of(parts.begin), page_of(parts.end)};
            count = own.end - own.begin;
            units = count == 0
                        ? 0
                        : divide(own.end - 1, unit_pages) - divide(own.begin, unit_pages) + 1;
        } else if (p.op == Op::gate_up) {
            own = share_of(live * groups, blockIdx.x, gridDim.x);
            count = (own.end - own.begin) * group_pages;
            units = 2 * (own.end - own.begin);
        } else {
            own = share_of(groups, blockIdx.x, gridDim.x);
            count = live * run_pages(p);
            units = live * (own.end - own.begin);
        }
    }

    __device__ Page at(const Phase& p, uint32_t n) const {
        uint32_t flat = n, slot = 0;
        if (!p.moe) {
            flat += own.begin;
        } else if (p.op == Op::gate_up) {
            const uint32_t order = divide(n, group_pages), pair = own.begin + order;
            slot = divide(pair, groups);
            flat = (pair - slot * groups) * group_pages + n - order * group_pages;
        } else {
            const uint32_t run = run_pages(p);
            slot = divide(n, run);
            const uint32_t in_run = n - slot * run;
            if (p.page_units > 1) {
                const uint32_t unit = own.begin + in_run * p.page_units;
                return {0,
                        static_cast<uint16_t>(slot),
                        static_cast<uint16_t>(min(p.page_units, own.end - unit)),
                        unit,
                        0,
                        p.unit_pieces,
                        0,
                        1,
                        slot * (own.end - own.begin) + unit - own.begin};
            }
            flat = own.begin * unit_pages + in_run;
        }
        const uint32_t unit = divide(flat, unit_pages), page = flat - unit * unit_pages;
        // Of a run: it may begin and end within a unit.
        const uint32_t begin = p.moe ? 0 : max(own.begin, unit * unit_pages) - unit * unit_pages;
        const uint32_t end = p.moe ? unit_pages : min(own.end - unit * unit_pages, unit_pages);
        const uint32_t first = page * p.page_pieces;
        const uint32_t order = p.moe ? divide(n, unit_pages) : unit - divide(own.begin, unit_pages);
        return {0,
                static_cast<uint16_t>(slot),
                1,
                unit,
                first,
                min(p.page_pieces, p.unit_pieces - first),
                page - begin,
                end - begin,
                order};
    }

    // Units of the block's first group that come before its first unit.
    __device__ uint32_t lead(const Phase& p) const {
        return p.moe || p.group_units == 1 ? 0 : divide(own.begin, unit_pages) % p.group_units;
    }

    // How many blocks have parts of a group; and which of them this block, one of them, is. With
    // fewer parts than blocks each part has a block to itself, and blocks between have none.
    __device__ uint32_t sharers(uint32_t g) const {
        if (groups * cuts <= gridDim.x) return cuts;
        return owner_of(groups * cuts, (g + 1) * cuts - 1, gridDim.x) - first_owner(g) + 1;
    }
    __device__ uint32_t sharer(uint32_t g) const {
        if (groups * cuts <= gridDim.x)
            return share_of(groups * cuts, blockIdx.x, gridDim.x).begin - g * cuts;
        return blockIdx.x - first_owner(g);
    }

  private:
    __device__ uint32_t page_of(uint32_t part) const {
        const uint32_t group = divide(part, cuts);
        return group * group_pages + divide(group_pages * (part - group * cuts), cuts);
    }
    __device__ uint32_t first_owner(uint32_t g) const {
        return owner_of(groups * cuts, g * cuts, gridDim.x);
    }
    __device__ uint32_t run_pages(const Phase& p) const {
        const uint32_t all = own.end - own.begin;
        return p.page_units > 1 ? (all + p.page_units - 1) / p.page_units : all * unit_pages;
    }
};

}  // namespace tessera::gpu
