// What one block has: its warps, its shared memory, its ring of weights; and how a matrix is dealt out
// to blocks.
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
    uint32_t deposited[kDepositSlots];  // warps that have left their sums of a unit
    uint32_t finished;   // units that have been added up, since the launch
    uint32_t last;       // whether this block's arrival was the last of all blocks'
    uint32_t shared[2];  // groups of the phase that other blocks have pieces of, or kNone
};
inline constexpr uint32_t kNone = ~0u;

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
    __device__ const Heads& heads(const Phase& p) const { return p.sliding ? net.sliding : net.full; }
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
    const Phase* phases;  // of the step, in the device's memory
    uint32_t first_phase;  // of this launch
    Ring ring;
    Place place;  // in the ring

    __device__ Distress* distress() const { return static_cast<Distress*>(net.distress); }

    // Whether the activations (and, of experts, the routing) must be made in this phase.
    __device__ bool fresh(const Phase& p, uint32_t index) const {
        return index == first_phase || !p.keeps;
    }
    __device__ bool routes(const Phase& p, uint32_t index) const {
        return p.moe && (p.op == Op::gate_up || index == first_phase);
    }

    // A page is read by all consumers' warps.
    __device__ void let_go() {
        __syncwarp();
        if (threadIdx.x % 32 == 0) ring.let_go(place);
        place.advance(ring.depth);
    }
};

static_assert(sizeof(Routing) % 8 == 0);

struct Range {
    uint32_t begin, end;
};

// Equal shares. `total` * `count` is below 2^32 (phases.cpp sees to it): a division of 64 bits is a
// hundred instructions, and the kernel has to stay in the caches of instructions.
__device__ inline Range share_of(uint32_t total, uint32_t index, uint32_t count) {
    return {total * index / count, total * (index + 1) / count};
}

// Whose share `at` is.
__device__ inline uint32_t owner_of(uint32_t total, uint32_t at, uint32_t count) {
    return ((at + 1) * count - 1) / total;
}

// A matrix is a run of panels, unit by unit. It is cut into groups of units that one epilogue needs
// together, a group into `splits` pieces of columns; a block has a run of pieces, and so of panels.
// The cut does not depend on the rows of a step.
struct Cut {
    uint32_t panels;       // of a unit
    uint32_t group;        // panels of a group
    uint32_t groups, splits;

    __device__ explicit Cut(const Phase& p)
        : panels(p.matrix.panels()),
          group(panels * p.group_units),
          groups(p.groups()),
          splits(p.splits) {}

    __device__ uint32_t panel_of(uint32_t piece) const {
        return piece / splits * group + group * (piece % splits) / splits;
    }
    __device__ Range range(uint32_t block, uint32_t blocks) const {
        const Range pieces = share_of(groups * splits, block, blocks);
        return {panel_of(pieces.begin), panel_of(pieces.end)};
    }
    // How many blocks have pieces of a group; and which of them `block`, one of them, is. With fewer
    // pieces than blocks each piece has a block to itself, and blocks between have none.
    __device__ uint32_t sharers(uint32_t g, uint32_t blocks) const {
        if (groups * splits <= blocks) return splits;
        return owner_of(groups * splits, (g + 1) * splits - 1, blocks) - first_owner(g, blocks) + 1;
    }
    __device__ uint32_t sharer(uint32_t g, uint32_t block, uint32_t blocks) const {
        if (groups * splits <= blocks)
            return share_of(groups * splits, block, blocks).begin - g * splits;
        return block - first_owner(g, blocks);
    }

  private:
    __device__ uint32_t first_owner(uint32_t g, uint32_t blocks) const {
        return owner_of(groups * splits, g * splits, blocks);
    }
};

}  // namespace tessera::gpu
