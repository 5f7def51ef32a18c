// What it costs that every SM reads the same activations: eight rows of 6144 bf16, from the L2 into
// its shared memory, after a barrier of all SMs; resident, or written just before by one SM or by
// all.
#pragma once

#include "rounds.cuh"

namespace tessera::ground {

constexpr uint32_t kActivationBytes = 8 * 6144 * 2;
constexpr uint32_t kVectors = kActivationBytes / 16;
constexpr uint32_t kVectorsPerThread = kVectors / kConsumers;
static_assert(kVectorsPerThread * kConsumers == kVectors);

enum class How : uint32_t {
    kNothing,  // the barrier alone: what the others are compared with
    kPlain,    // 16-byte loads and stores by all consumers
    kBulk,     // one bulk copy
    kPages,    // six, of 16 KiB
    kCluster,  // a slice by each block of a cluster, to all of them
};

enum class Written : uint32_t { kBefore, kByOne, kByAll };

struct BroadcastTask {
    RoundsTask rounds;
    uint4* activations;  // two buffers of kVectors, in turns: one barrier a round is then enough
    uint64_t* event;
    uint32_t* faults;
    Written written;
    uint32_t cluster;  // blocks
};

// Vector i of the activations of a round; those that are never written are round 0's. Cheap to
// make: it is made within the rounds.
__host__ __device__ inline uint4 activation(uint32_t round, uint32_t i) {
    const uint32_t x = i * 0x9e3779b9u + round * 0x85ebca6bu;
    return {x, x + 0x27d4eb2fu, x + 0x165667b1u, x + 0xc2b2ae35u};
}

__device__ inline const uint4* buffer_of(const BroadcastTask& task, uint32_t r) {
    return task.activations + (r & 1) * kVectors;
}

// This block's part of the round's activations.
__device__ inline void write_activations(const BroadcastTask& task, uint32_t r) {
    if (task.written == Written::kBefore) return;
    const uint32_t parts = task.written == Written::kByOne ? 1 : gridDim.x;
    if (blockIdx.x >= parts) return;
    uint4* to = task.activations + (r & 1) * kVectors;
    const uint32_t end = (blockIdx.x + 1) * kVectors / parts;
    for (uint32_t i = blockIdx.x * kVectors / parts + threadIdx.x; i < end; i += kConsumers) {
        to[i] = activation(r, i);
    }
    gpu::async_fence();
}

__device__ inline void load_plain(const uint4* from, uint4* to) {
    constexpr uint32_t kBatch = kVectorsPerThread / 2;
#pragma unroll 1
    for (uint32_t first = threadIdx.x; first < kVectors; first += kBatch * kConsumers) {
        uint4 v[kBatch];
#pragma unroll
        for (uint32_t u = 0; u < kBatch; ++u) v[u] = from[first + u * kConsumers];
#pragma unroll
        for (uint32_t u = 0; u < kBatch; ++u) to[first + u * kConsumers] = v[u];
    }
}

// By one thread: asks for all of it. Every part counts towards `full`, which is armed once for
// each.
template <How kHow>
__device__ void load_bulk(const BroadcastTask& task, const uint4* from, uint4* to,
                          gpu::PageBarrier* full) {
    if constexpr (kHow == How::kBulk) {
        gpu::page_load(to, from, kActivationBytes, full);
    } else if constexpr (kHow == How::kPages) {
        constexpr uint32_t kPages = kActivationBytes / kLoadPageBytes;
        for (uint32_t page = 0; page < kPages; ++page) {
            const uint32_t at = page * kVectors / kPages;
            gpu::page_load(to + at, from + at, kLoadPageBytes, full);
        }
    } else {
        const uint32_t vectors = kVectors / task.cluster;
        const uint32_t at = blockIdx.x % task.cluster * vectors;
        gpu::arrive_expecting(full, kActivationBytes);
        gpu::slice_load(to + at, from + at, vectors * 16, full,
                        static_cast<uint16_t>((1u << task.cluster) - 1));
    }
}

// In every eighth round, so that looking costs next to nothing, each consumer looks at one vector,
// another each time.
__device__ inline uint32_t fault_in(const BroadcastTask& task, const uint4* copy, uint32_t r) {
    if (r % 8 != 0) return 0;
    const uint32_t i = r / 8 % kVectorsPerThread * kConsumers + threadIdx.x;
    const uint4 expected = activation(task.written == Written::kBefore ? 0 : r, i);
    const uint4 seen = copy[i];
    return seen.x != expected.x || seen.y != expected.y || seen.z != expected.z ||
           seen.w != expected.w;
}

template <How kHow>
__global__ __launch_bounds__(kBlockThreads,
                             1) void broadcast_rounds(const __grid_constant__ BroadcastTask task) {
    extern __shared__ __align__(128) std::byte shared[];
    __shared__ gpu::PageBarrier full;
    auto* copy = reinterpret_cast<uint4*>(shared);
    gpu::Distress* board = task.rounds.board;
    uint32_t faults = 0;
    uint32_t parity = 0;
    if (threadIdx.x == 0) {
        gpu::init(&full, kHow == How::kPages ? kActivationBytes / kLoadPageBytes : 1);
        gpu::init_done();
    }
    if constexpr (kHow == How::kCluster) gpu::sync_cluster();
    run_rounds(task.rounds, shared + kActivationBytes, true, [&](uint64_t r) {
        const auto round = static_cast<uint32_t>(r);
        const uint4* from = buffer_of(task, round);
        write_activations(task, round);
        gpu::sync_threads(kConsumerBarrier, kConsumers);
        if (threadIdx.x == 0) {
            gpu::signal(task.event);
            gpu::wait(task.event, r * gridDim.x, board);
            if constexpr (kHow == How::kBulk || kHow == How::kPages || kHow == How::kCluster) {
                gpu::async_fence();
                load_bulk<kHow>(task, from, copy, &full);
            }
        }
        if constexpr (kHow == How::kNothing || kHow == How::kPlain) {
            gpu::sync_threads(kConsumerBarrier, kConsumers);
        }
        if constexpr (kHow == How::kPlain) {
            load_plain(from, copy);
            gpu::sync_threads(kConsumerBarrier, kConsumers);
        } else if constexpr (kHow != How::kNothing) {
            gpu::wait(&full, parity, gpu::Awaited::kFullPage, board);
            parity ^= 1;
        }
        if constexpr (kHow != How::kNothing) faults += fault_in(task, copy, round);
    });
    if (faults > 0) atomicAdd(task.faults, faults);
}

// ---- The host's side ---------------------------------------------------------------------------

class Broadcasts {
  public:
    static constexpr uint32_t kRounds = 2048;

    Broadcasts(const Card& card, const Weights& weights)
        : card_(card), rounds_(card, weights), activations_(2 * kVectors), event_(1), faults_(1) {}

    template <How kHow>
    Timed run(Written written, uint32_t depth, uint32_t cluster) const {
        const auto kernel = broadcast_rounds<kHow>;
        Grid grid = {card_.sms(), kBlockThreads,
                     kActivationBytes + rounds_shared_bytes(kRounds, depth), cluster};
        if (cluster > 1) grid.blocks = card_.blocks_in_clusters(kernel, grid);
        must_hold(grid.blocks > 0, "no cluster fits");
        std::vector<uint4> resident(2 * kVectors);
        for (uint32_t i = 0; i < 2 * kVectors; ++i) resident[i] = activation(0, i % kVectors);
        const auto launch = [&](const RoundsTask& task, uint32_t) {
            MUST(cudaMemcpyAsync(activations_.data(), resident.data(), 2 * kActivationBytes,
                                 cudaMemcpyHostToDevice, card_.stream()));
            event_.clear(card_.stream());
            faults_.clear(card_.stream());
            card_.launch(kernel, grid,
                         BroadcastTask{task, activations_.data(), event_.data(), faults_.data(),
                                       written, cluster});
        };
        Timed timed = rounds_.run(kRounds, depth, grid.blocks, [&](const auto& task, uint32_t n) {
            launch(task, n);
            card_.finish();
            const uint32_t faults = faults_.host()[0];
            must_hold(faults == 0, std::to_string(faults) + " vectors were not what was written");
        });
        timed.blocks = grid.blocks;
        return timed;
    }

  private:
    const Card& card_;
    Rounds rounds_;
    Array<uint4> activations_;
    Array<uint64_t> event_;
    Array<uint32_t> faults_;
};

struct BroadcastCase {
    std::string name;
    Timed (Broadcasts::*run)(Written, uint32_t depth, uint32_t cluster) const;
    uint32_t cluster = 1;
};

// The barrier alone first: what a case adds to it is the case's own.
inline void measure_broadcast(const Card& card, const Reporter& reporter) {
    const Weights weights(card);
    const Broadcasts broadcasts(card, weights);
    const std::vector<BroadcastCase> cases = {
        {"the barrier alone", &Broadcasts::run<How::kNothing>},
        {"plain loads", &Broadcasts::run<How::kPlain>},
        {"one bulk copy", &Broadcasts::run<How::kBulk>},
        {"bulk copies of 16 KiB", &Broadcasts::run<How::kPages>},
        {"slices to clusters of 2", &Broadcasts::run<How::kCluster>, 2},
        {"slices to clusters of 4", &Broadcasts::run<How::kCluster>, 4},
    };
    const std::vector<std::pair<Written, std::string>> writers = {
        {Written::kBefore, "resident"},
        {Written::kByOne, "written by one SM"},
        {Written::kByAll, "written by all SMs"}};
    for (const uint32_t depth : {0, 6}) {
        double barrier_ns = 0;
        for (const auto& [written, writer] : writers) {
            for (const BroadcastCase& one : cases) {
                const bool alone = one.run == &Broadcasts::run<How::kNothing>;
                const std::string name =
                    writer + ", " + one.name + (depth > 0 ? ", weights streaming" : "");
                reporter.attempt(name, [&] {
                    const Timed timed = (broadcasts.*one.run)(written, depth, one.cluster);
                    const Spread ns = spread(timed.round_ns);
                    if (alone && written == Written::kBefore) barrier_ns = ns.median;
                    Numbers more = {{"over_the_barrier_ns", ns.median - barrier_ns},
                                    {"blocks", timed.blocks}};
                    for (const auto& number : timed.more()) more.push_back(number);
                    reporter.say(Figure{name, "ns", ns, more});
                });
            }
        }
    }
}

}  // namespace tessera::ground
