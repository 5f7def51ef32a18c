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
    // By adder: full when all multipliers have left what it adds up next, and when it has read
    // that.
    PageBarrier left[kAdders], added[kAdders];
    uint32_t last;    // whether this block's arrival was the last of all
    uint64_t passed;  // signals of the barrier that the block's first thread has waited for
    Stamp stamp;      // of the phase
};
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

struct Block : View {
    const Phase* phases;   // of the step, in the device's memory
    uint32_t first_phase;  // of this launch
    Ring ring;
    // How far this thread has come since the launch: in the ring (the loader's next page, or the
    // phase's first); and, a bit an adder, parities of what it adds up next.
    Place place{};
    uint32_t turns = 0;
    uint32_t routed_turn = 0;  // of the loader: parity of the next routing
    // Whether every lane arrives at the block's barriers, or one for its warp, behind a barrier of
    // the warp: as good and faster, but compute-sanitizer's racecheck does not follow it.
    bool every_lane = false;

    // By the first thread, before the block's first barrier.
    __device__ void init_barriers() const {
        const uint32_t of_warp = every_lane ? 32 : 1;
        init(routed(), every_lane ? kConsumerThreads : 1);
        for (uint32_t adder = 0; adder < kAdders; ++adder) {
            init(&counts().left[adder], kMultipliers * of_warp);
            init(&counts().added[adder], of_warp);
        }
        ring.init(kMultipliers * of_warp);
    }

    // What the warp has read and written is done.
    __device__ void arrive_together(PageBarrier* barrier) const {
        __syncwarp();
        if (every_lane || threadIdx.x % 32 == 0) arrive(barrier);
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

// Quotients by a number that is known for a while: one multiplication each. Exact where the product
// of both is below 2^32.
struct Quotient {
    uint32_t divisor, inverse;

    explicit __device__ Quotient(uint32_t by) : divisor(by), inverse(by > 1 ? ~0u / by + 1 : 0) {}
    __device__ uint32_t of(uint32_t value) const {
        return divisor > 1 ? __umulhi(value, inverse) : value;
    }
};

// Whose share `at` is.
__device__ inline uint32_t owner_of(uint32_t total, uint32_t at, uint32_t count) {
    return divide((at + 1) * count - 1, total);
}

// Which items of a phase a block streams, in their order: the one place that knows, for the loader
// and the consumers. Units that are multiplied together are a bundle, and a bundle has the items of
// one. A matrix that every step needs is a run of items, bundle by bundle; it is cut into groups
// that one epilogue needs together, a group into `cuts` parts, and a block has a run of parts. Of
// experts' gate and up a block has pairs of units, each whole; of their down the same units of
// every live expert. No sum is cut in a way that depends on the rows of a step or on which experts
// are live: of a bundle, or a block's part of one, the sums of every kMultipliers-th item come
// together, and those are added up in order.
struct Items {
    uint32_t per_bundle, per_group, groups, cuts;
    Range own;         // items; of experts: pairs, or units
    uint32_t count;    // of this block, over all experts
    uint32_t before;   // of its first bundle, that other blocks have
    uint32_t first;    // bundle, of a matrix that every step needs
    uint32_t bundles;  // that it has items of

    __device__ Items(const Phase& p, uint32_t live)
        : per_bundle(p.unit_items),
          per_group(p.group_items()),
          groups(p.groups()),
          cuts(p.cuts),
          before(0),
          first(0) {
        if (!p.moe) {
            const Range parts = share_of(groups * cuts, blockIdx.x, gridDim.x);
            own = {item_of(parts.begin), item_of(parts.end)};
            count = own.end - own.begin;
            first = divide(own.begin, per_bundle);
            before = own.begin - first * per_bundle;
        } else if (p.op == Op::gate_up) {
            own = share_of(live * groups, blockIdx.x, gridDim.x);
            count = (own.end - own.begin) * per_group;
        } else {
            own = share_of(groups, blockIdx.x, gridDim.x);
            count = live * expert_units() * per_bundle;
        }
        bundles = count == 0 ? 0 : divide(before + count + per_bundle - 1, per_bundle);
    }

    // Of experts' down.
    __device__ uint32_t expert_units() const { return own.end - own.begin; }

    // Items of a bundle that the block has, of its own.
    __device__ Range of_bundle(uint32_t bundle) const {
        return {bundle == 0 ? 0 : bundle * per_bundle - before,
                min((bundle + 1) * per_bundle - before, count)};
    }

    // Whether all of a group is this block's; of experts it always is.
    __device__ bool has_all(uint32_t group) const {
        return own.begin <= group * per_group && (group + 1) * per_group <= own.end;
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
    __device__ uint32_t item_of(uint32_t part) const {
        const uint32_t group = divide(part, cuts);
        return group * per_group + divide(per_group * (part - group * cuts), cuts);
    }
    __device__ uint32_t first_owner(uint32_t g) const {
        return owner_of(groups * cuts, g * cuts, gridDim.x);
    }
};

}  // namespace tessera::gpu
