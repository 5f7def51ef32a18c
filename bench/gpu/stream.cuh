// How fast a persistent grid reads: by plain loads, by bulk copies through a ring of pages, and by
// the same ring in phases with a grid barrier between them.
#pragma once

#include "runtime/gpu/ring.cuh"

#include "weights.cuh"

namespace tessera::ground {

constexpr uint32_t kConsumerWarps = 8;
constexpr uint32_t kConsumers = kConsumerWarps * 32;
constexpr uint32_t kBlockThreads = kConsumers + 32;  // the last warp loads
constexpr uint32_t kConsumerBarrier = 1;

__device__ inline uint32_t sum_of(const uint4& v) {
    return v.x + v.y + v.z + v.w;
}

// ---- Plain loads -------------------------------------------------------------------------------

struct PlainTask {
    const uint4* weights;
    uint64_t rounds;  // of all blocks together: kUnroll vectors a thread
    uint32_t* sum;
};

__device__ inline uint4 load_once(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

// A block reads kUnroll * kThreads vectors in a row, then skips those of the other blocks.
template <uint32_t kThreads, uint32_t kBlocks, uint32_t kUnroll>
__global__ __launch_bounds__(kThreads, kBlocks) void stream_plain(const PlainTask task) {
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * kThreads * kUnroll;
    const uint4* from = task.weights + blockIdx.x * kThreads * kUnroll + threadIdx.x;
    uint32_t sum = 0;
    for (uint64_t round = 0; round < task.rounds; ++round, from += step) {
        uint4 v[kUnroll];
#pragma unroll
        for (uint32_t u = 0; u < kUnroll; ++u) v[u] = load_once(from + u * kThreads);
#pragma unroll
        for (uint32_t u = 0; u < kUnroll; ++u) sum += sum_of(v[u]);
    }
    sum = __reduce_add_sync(~0u, sum);
    if (threadIdx.x % 32 == 0) atomicAdd(task.sum, sum);
}

// ---- Bulk copies -------------------------------------------------------------------------------

enum class Boundary : uint32_t {
    kAhead,  // the loader runs across it
    kStop,   // the loader waits for it too
};

struct Moments {
    uint64_t began_ns, ended_ns;
};

struct BulkTask {
    const std::byte* weights;
    uint32_t pages;  // of each block
    uint32_t pages_per_phase;
    uint32_t page_bytes;
    uint32_t depth;
    bool contiguous;  // a block's pages lie in a row; otherwise the blocks' take turns
    Boundary boundary;
    uint64_t* event;
    uint32_t* sum;
    Moments* moments;  // of each block
    gpu::Distress* board;
};

template <bool kEvictFirst>
__device__ void load_pages(const BulkTask& task, const gpu::Ring& ring) {
    const uint64_t policy = kEvictFirst ? gpu::evict_first() : 0;
    const uint64_t first = task.contiguous ? uint64_t{blockIdx.x} * task.pages : blockIdx.x;
    const std::byte* from = task.weights + first * task.page_bytes;
    const uint64_t step = task.page_bytes * (task.contiguous ? uint64_t{1} : gridDim.x);
    uint32_t left = task.pages_per_phase;
    uint64_t arrivals = 0;
    gpu::Place place;
    for (uint32_t page = 0; page < task.pages; ++page, from += step) {
        if (left == 0) {
            left = task.pages_per_phase;
            arrivals += gridDim.x;
            if (task.boundary == Boundary::kStop) gpu::wait(task.event, arrivals, task.board);
        }
        --left;
        ring.wait_empty(place, task.board);
        if constexpr (kEvictFirst) {
            gpu::page_load(ring.page(place), from, task.page_bytes, &ring.full[place.slot], policy);
        } else {
            gpu::page_load(ring.page(place), from, task.page_bytes, &ring.full[place.slot]);
        }
        place.advance(ring.depth);
    }
}

// All consumers of all blocks have finished the phase.
__device__ inline void end_phase(const BulkTask& task, uint64_t arrivals, bool last) {
    gpu::sync_threads(kConsumerBarrier, kConsumers);
    if (threadIdx.x == 0) {
        gpu::signal(task.event);
        if (!last) gpu::wait(task.event, arrivals, task.board);
    }
    gpu::sync_threads(kConsumerBarrier, kConsumers);
}

// Sums the words of every page, or only the first word of each: then it waits for pages and lets
// go.
template <bool kReads>
__device__ uint32_t consume_pages(const BulkTask& task, const gpu::Ring& ring) {
    uint32_t sum = 0;
    uint32_t left = task.pages_per_phase;
    uint64_t arrivals = 0;
    gpu::Place place;
    for (uint32_t page = 0; page < task.pages; ++page) {
        ring.wait_full(place, task.board);
        if constexpr (kReads) {
            const auto* vectors = reinterpret_cast<const uint4*>(ring.page(place));
#pragma unroll 2
            for (uint32_t i = threadIdx.x; i < ring.page_bytes / 16; i += kConsumers) {
                sum += sum_of(vectors[i]);
            }
        } else if (threadIdx.x == 0) {
            sum += *reinterpret_cast<const uint32_t*>(ring.page(place));
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) ring.let_go(place);
        place.advance(ring.depth);
        if (--left == 0) {
            left = task.pages_per_phase;
            arrivals += gridDim.x;
            end_phase(task, arrivals, page + 1 == task.pages);
        }
    }
    return sum;
}

template <bool kReads, bool kEvictFirst>
__global__ __launch_bounds__(kBlockThreads,
                             2) void stream_bulk(const __grid_constant__ BulkTask task) {
    extern __shared__ __align__(128) std::byte shared[];
    const gpu::Ring ring = gpu::Ring::at(shared, task.depth, task.page_bytes);
    if (threadIdx.x == 0) {
        task.moments[blockIdx.x].began_ns = gpu::now_ns();
        ring.init(kConsumerWarps);
    }
    __syncthreads();
    if (threadIdx.x >= kConsumers) {
        if (threadIdx.x == kConsumers) load_pages<kEvictFirst>(task, ring);
        return;
    }
    uint32_t sum = consume_pages<kReads>(task, ring);
    sum = __reduce_add_sync(~0u, sum);
    if (threadIdx.x % 32 == 0) atomicAdd(task.sum, sum);
    if (threadIdx.x == 0) task.moments[blockIdx.x].ended_ns = gpu::now_ns();
}

// ---- The host's side ---------------------------------------------------------------------------

// A ring as it is configured, and what it is asked to do.
struct Bulk {
    uint32_t page_kib = 16;
    uint32_t depth = 8;
    uint32_t blocks_per_sm = 1;
    bool reads = true;
    bool evict_first = false;
    bool contiguous = false;
    uint32_t phase_bytes = 0;  // 0: one phase
    Boundary boundary = Boundary::kAhead;
};

struct Streamed {
    std::vector<double> milliseconds;
    uint64_t bytes;
    uint32_t phases;
    double spread_us;  // between the first and the last block to end

    Spread gb_per_s() const {
        const Spread time = spread(milliseconds);
        const double gb = static_cast<double>(bytes) / 1e6;  // a millisecond counts
        return {gb / time.median, gb / time.high, gb / time.low};
    }
};

class Streams {
  public:
    Streams(const Card& card, const Weights& weights)
        : card_(card), weights_(weights), event_(1), sum_(1), moments_(kBlocksMax) {}

    Streamed bulk(const Bulk& bulk) const {
        const uint32_t blocks = card_.sms() * bulk.blocks_per_sm;
        const uint32_t page_bytes = bulk.page_kib << 10;
        auto pages = static_cast<uint32_t>(Weights::kBytes / page_bytes / blocks);
        const uint32_t per_phase = bulk.phase_bytes == 0 ? pages : bulk.phase_bytes / page_bytes;
        pages -= pages % per_phase;
        const uint64_t all_pages = uint64_t{pages} * blocks;
        const uint64_t bytes = all_pages * page_bytes;
        const uint32_t expected =
            bulk.reads ? weights_.sum(bytes / 4) : weights_.sum(all_pages, page_bytes / 4);
        const BulkTask task = {weights_.data(), pages,           per_phase,     page_bytes,
                               bulk.depth,      bulk.contiguous, bulk.boundary, event_.data(),
                               sum_.data(),     moments_.data(), card_.board()};
        const auto kernel =
            bulk.reads ? (bulk.evict_first ? stream_bulk<true, true> : stream_bulk<true, false>)
                       : (bulk.evict_first ? stream_bulk<false, true> : stream_bulk<false, false>);
        const uint32_t ring_bytes = gpu::Ring::bytes(bulk.depth, page_bytes);
        const Grid grid = {blocks, kBlockThreads,
                           bulk.blocks_per_sm > 1 ? ring_bytes : std::max(ring_bytes, kAloneBytes)};
        Streamed result = timed([&] { card_.launch(kernel, grid, task); }, bytes, expected);
        result.phases = pages / per_phase;
        std::vector<double> ends;
        const std::vector<Moments> moments = moments_.host();
        for (uint32_t block = 0; block < blocks; ++block) {
            ends.push_back(static_cast<double>(moments[block].ended_ns - moments[0].began_ns));
        }
        const Spread end_ns = spread(ends);
        result.spread_us = (end_ns.high - end_ns.low) / 1e3;
        return result;
    }

    template <uint32_t kThreads, uint32_t kBlocks, uint32_t kUnroll>
    Streamed plain() const {
        const uint32_t blocks = card_.sms() * kBlocks;
        const uint64_t round_bytes = uint64_t{blocks} * kThreads * kUnroll * 16;
        const uint64_t rounds = Weights::kBytes / round_bytes;
        const uint64_t bytes = rounds * round_bytes;
        const PlainTask task = {reinterpret_cast<const uint4*>(weights_.data()), rounds,
                                sum_.data()};
        const Grid grid = {blocks, kThreads, 0};
        return timed([&] { card_.launch(stream_plain<kThreads, kBlocks, kUnroll>, grid, task); },
                     bytes, weights_.sum(bytes / 4));
    }

  private:
    Streamed timed(const std::function<void()>& launch, uint64_t bytes, uint32_t expected) const {
        Streamed result = {{}, bytes, 1, 0};
        for (uint32_t repetition = 0; repetition < kWarmUps + kRepetitions; ++repetition) {
            event_.clear(card_.stream());
            sum_.clear(card_.stream());
            const double time = card_.milliseconds(launch);
            const uint32_t sum = sum_.host()[0];
            must_hold(sum == expected,
                      "read a sum of " + std::to_string(sum) + ", not " + std::to_string(expected));
            if (repetition >= kWarmUps) result.milliseconds.push_back(time);
        }
        return result;
    }

    const Card& card_;
    const Weights& weights_;
    Array<uint64_t> event_;
    Array<uint32_t> sum_;
    Array<Moments> moments_;
};

inline std::string name_of(const Bulk& bulk) {
    return "bulk " + std::to_string(bulk.page_kib) + " KiB x " + std::to_string(bulk.depth) + ", " +
           std::to_string(bulk.blocks_per_sm) + " a SM" + (bulk.reads ? "" : ", only waits") +
           (bulk.evict_first ? ", evict first" : "") + (bulk.contiguous ? ", in a row" : "");
}

inline void measure_stream(const Card& card, const Reporter& reporter) {
    const Weights weights(card);
    const Streams streams(card, weights);
    double ceiling = 0;
    const auto say = [&](const std::string& name, const Streamed& streamed, const Numbers& more) {
        reporter.say(Figure{name, "GB/s", streamed.gb_per_s(), more});
        ceiling = std::max(ceiling, streamed.gb_per_s().median);
    };
    const auto plain = [&](const std::string& name, auto measure) {
        reporter.attempt(name, [&] { say(name, measure(), {}); });
    };
    plain("plain 512 threads x 8 loads, 1 a SM", [&] { return streams.plain<512, 1, 8>(); });
    plain("plain 512 threads x 16 loads, 1 a SM", [&] { return streams.plain<512, 1, 16>(); });
    plain("plain 1024 threads x 8 loads, 1 a SM", [&] { return streams.plain<1024, 1, 8>(); });
    plain("plain 512 threads x 8 loads, 2 a SM", [&] { return streams.plain<512, 2, 8>(); });
    plain("plain 1024 threads x 4 loads, 2 a SM", [&] { return streams.plain<1024, 2, 4>(); });

    std::vector<Bulk> bulks;
    for (const uint32_t depth : {2, 3, 4, 6, 8, 10, 12, 14}) bulks.push_back({16, depth});
    for (const uint32_t depth : {4, 8, 16, 24}) bulks.push_back({8, depth});
    for (const uint32_t depth : {2, 3, 4, 6}) bulks.push_back({32, depth});
    for (const uint32_t depth : {2, 3, 4, 6}) bulks.push_back({16, depth, 2});
    for (const uint32_t depth : {4, 8, 12}) {
        bulks.push_back({16, depth, 1, false});
        bulks.push_back({16, depth, 1, true, true});
        bulks.push_back({16, depth, 1, false, true});
        bulks.push_back({16, depth, 1, true, false, true});
    }
    for (const Bulk& bulk : bulks) {
        reporter.attempt(name_of(bulk), [&] {
            const Streamed streamed = streams.bulk(bulk);
            say(name_of(bulk), streamed, {{"blocks_end_within_us", streamed.spread_us}});
        });
    }
    reporter.say(Figure{"the best of these: the ceiling", "GB/s", {ceiling, ceiling, ceiling}, {}});
}

// What a boundary costs: the time over that of one phase, and how often the boundary came.
inline void measure_phases(const Card& card, const Reporter& reporter) {
    const Weights weights(card);
    const Streams streams(card, weights);
    for (const uint32_t depth : {6, 12}) {
        for (const uint32_t phase_kib : {64, 128, 256, 512, 1024}) {
            Bulk bulk = {16, depth};
            bulk.phase_bytes = phase_kib << 10;
            const std::string shape = "16 KiB x " + std::to_string(depth) + ", phases of " +
                                      std::to_string(phase_kib) + " KiB a SM, ";
            for (const Boundary boundary : {Boundary::kStop, Boundary::kAhead}) {
                const std::string name =
                    shape + (boundary == Boundary::kStop ? "refilled after" : "loaded ahead");
                reporter.attempt(name, [&] {
                    Bulk whole = bulk;
                    whole.phase_bytes = 0;
                    const Streamed base = streams.bulk(whole);
                    bulk.boundary = boundary;
                    const Streamed phased = streams.bulk(bulk);
                    const double base_gb_per_s = base.gb_per_s().median;
                    const double base_ms = static_cast<double>(phased.bytes) / 1e6 / base_gb_per_s;
                    const double lost_ms = spread(phased.milliseconds).median - base_ms;
                    const double lost_us = lost_ms * 1e3 / (phased.phases - 1);
                    reporter.say(Figure{name,
                                        "GB/s",
                                        phased.gb_per_s(),
                                        {{"share", phased.gb_per_s().median / base_gb_per_s},
                                         {"lost_us_a_boundary", lost_us},
                                         {"boundaries", phased.phases - 1}}});
                });
            }
        }
    }
}

}  // namespace tessera::ground
