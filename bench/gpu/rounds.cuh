// Rounds of something short on all SMs, each timed, with or without weights streaming through
// another warp of every SM meanwhile. Knows nothing of what a round does.
//
// A block has consumers, who run the rounds, and a streamer: one thread that waits for its oldest
// page, reads its first word and asks for the next, until the rounds are over. Its words are
// checked.
#pragma once

#include "stream.cuh"

namespace tessera::ground {

constexpr uint32_t kWarmRounds = 64;
constexpr uint32_t kLoadPageBytes = 16 << 10;
constexpr uint64_t kLoadHeadStartNs = 30'000;

struct Streaming {
    uint64_t pages;
    uint64_t ns;
    uint32_t sum;  // of the pages' first words
};

struct Timing {
    uint64_t ns;      // of all rounds
    uint64_t cycles;  // likewise, by the SM's own clock
};

struct RoundsTask {
    uint32_t rounds;  // after the first kWarmRounds
    uint32_t depth;   // of the streamer's ring; 0: nothing streams
    const std::byte* weights;
    uint64_t pages_per_block;  // then it starts again
    Streaming* streaming;      // of each block
    Timing* timing;            // of block 0
    uint32_t* cycles;          // rounds, of block 0
    uint64_t* over;            // an event: block 0 has done its rounds
    gpu::Distress* board;
};

// Where this block's page `n` lies.
__device__ inline const std::byte* streamed_page(const RoundsTask& task, uint64_t n) {
    return task.weights + (n * gridDim.x + blockIdx.x) * kLoadPageBytes;
}

__device__ inline void stream_until(const RoundsTask& task, const gpu::Ring& ring,
                                    const volatile uint32_t* stop) {
    Streaming done = {0, gpu::now_ns(), 0};
    uint64_t asked = 0;
    uint64_t page = 0;
    gpu::Place oldest;
    gpu::Place next;
    const auto retire = [&] {
        ring.wait_full(oldest, task.board);
        done.sum += *reinterpret_cast<const uint32_t*>(ring.page(oldest));
        gpu::async_fence_shared();
        oldest.advance(ring.depth);
        ++done.pages;
    };
    while (*stop == 0) {
        if (asked - done.pages == ring.depth) retire();
        gpu::page_load(ring.page(next), streamed_page(task, page), ring.page_bytes,
                       &ring.full[next.slot]);
        next.advance(ring.depth);
        ++asked;
        if (++page == task.pages_per_block) page = 0;
    }
    while (done.pages < asked) retire();  // no copy may outlive the block
    done.ns = gpu::now_ns() - done.ns;
    task.streaming[blockIdx.x] = done;
}

// The shared memory of a block: the ring, its barriers, the cycles of each round.
constexpr uint32_t rounds_shared_bytes(uint32_t rounds, uint32_t depth) {
    return std::max(gpu::Ring::bytes(depth, kLoadPageBytes) + rounds * 4, kAloneBytes);
}

// Waits for the end of block 0's rounds and leaves the memory in peace meanwhile.
__device__ inline void sit_out(const RoundsTask& task) {
    gpu::SpinLimit limit;
    for (uint64_t seen = 0; seen == 0; seen = gpu::count_of(task.over)) {
        __nanosleep(2000);
        limit.poll(task.board, gpu::Awaited::kEvent, 1, seen);
    }
}

// Called by all threads of all blocks. `round(r)` is called by all consumers, r from 1; blocks that
// do not take part only stream.
template <class Round>
__device__ void run_rounds(const RoundsTask& task, std::byte* shared, bool takes_part,
                           Round&& round) {
    __shared__ uint32_t stop;
    const gpu::Ring ring = gpu::Ring::at(shared, task.depth, kLoadPageBytes);
    auto* cycles = reinterpret_cast<uint32_t*>(ring.empty + task.depth);
    if (threadIdx.x == 0) {
        stop = 0;
        ring.init(1);
    }
    __syncthreads();
    if (threadIdx.x >= kConsumers) {
        if (threadIdx.x == kConsumers && task.depth > 0) stream_until(task, ring, &stop);
        return;
    }
    if (!takes_part) {
        if (threadIdx.x == 0 && task.depth > 0) sit_out(task);
    } else {
        const bool keeps_time = blockIdx.x == 0 && threadIdx.x == 0;
        const uint64_t arrived = gpu::now_ns();
        while (task.depth > 0 && gpu::now_ns() - arrived < kLoadHeadStartNs) __nanosleep(1000);
        Timing began = {};
        for (uint32_t r = 1; r <= kWarmRounds + task.rounds; ++r) {
            const int64_t before = clock64();
            if (keeps_time && r == kWarmRounds + 1) {
                began = {gpu::now_ns(), static_cast<uint64_t>(before)};
            }
            round(r);
            if (keeps_time && r > kWarmRounds) {
                cycles[r - kWarmRounds - 1] = static_cast<uint32_t>(clock64() - before);
            }
        }
        if (keeps_time) {
            *task.timing = {gpu::now_ns() - began.ns,
                            static_cast<uint64_t>(clock64()) - began.cycles};
            for (uint32_t i = 0; i < task.rounds; ++i) task.cycles[i] = cycles[i];
            gpu::signal(task.over);
        }
    }
    gpu::sync_threads(kConsumerBarrier, kConsumers);
    if (threadIdx.x == 0) *static_cast<volatile uint32_t*>(&stop) = 1;
}

// ---- The host's side ---------------------------------------------------------------------------

struct CheckTask {
    RoundsTask rounds;
    uint32_t* wrong;  // blocks
};

// The streamers' sums, made again page by page.
static __global__ void check_streaming(const CheckTask task) {
    __shared__ uint32_t sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    const Streaming& done = task.rounds.streaming[blockIdx.x];
    uint32_t own = 0;
    for (uint64_t n = threadIdx.x; n < done.pages; n += blockDim.x) {
        own += *reinterpret_cast<const uint32_t*>(
            streamed_page(task.rounds, n % task.rounds.pages_per_block));
    }
    atomicAdd(&sum, own);
    __syncthreads();
    if (threadIdx.x == 0 && sum != done.sum) atomicAdd(task.wrong, 1);
}

struct Timed {
    std::vector<double> round_ns;  // of each repetition: all its time over its rounds
    std::vector<double>
        single_ns;  // of each round of each repetition, at the clock that was measured
    std::vector<double> streamed_gb_per_s;  // of each repetition
    uint32_t blocks = 0;

    Numbers more() const {
        Numbers more = {{"single_p50_ns", quantile(single_ns, 0.5)},
                        {"single_p99_ns", quantile(single_ns, 0.99)},
                        {"single_max_ns", quantile(single_ns, 1)}};
        if (!streamed_gb_per_s.empty()) {
            more.emplace_back("streamed_gb_per_s", spread(streamed_gb_per_s).median);
        }
        return more;
    }
};

class Rounds {
  public:
    Rounds(const Card& card, const Weights& weights)
        : card_(card),
          weights_(weights),
          streaming_(kBlocksMax),
          timing_(1),
          cycles_(kRoundsMax),
          over_(1),
          wrong_(1) {}

    static constexpr uint32_t kRoundsMax = 4096;

    // `launch(task, repetition)` starts a kernel of `blocks` blocks that calls run_rounds.
    template <class Launch>
    Timed run(uint32_t rounds, uint32_t depth, uint32_t blocks, Launch&& launch) const {
        const RoundsTask task = {rounds,
                                 depth,
                                 weights_.data(),
                                 Weights::kBytes / kLoadPageBytes / blocks,
                                 streaming_.data(),
                                 timing_.data(),
                                 cycles_.data(),
                                 over_.data(),
                                 card_.board()};
        Timed timed;
        for (uint32_t repetition = 0; repetition < kRepetitions; ++repetition) {
            over_.clear(card_.stream());
            timing_.clear(card_.stream());
            streaming_.clear(card_.stream());
            launch(task, repetition);
            card_.finish();
            note(task, timed);
            if (depth > 0) note_streaming(task, blocks, timed);
        }
        return timed;
    }

  private:
    void note(const RoundsTask& task, Timed& timed) const {
        const Timing timing = timing_.host()[0];
        must_hold(timing.ns > 0 && timing.cycles > 0, "block 0 left no time");
        const double ns_per_cycle =
            static_cast<double>(timing.ns) / static_cast<double>(timing.cycles);
        timed.round_ns.push_back(static_cast<double>(timing.ns) / task.rounds);
        const std::vector<uint32_t> cycles = cycles_.host();
        for (uint32_t i = 0; i < task.rounds; ++i) {
            timed.single_ns.push_back(cycles[i] * ns_per_cycle);
        }
    }

    void note_streaming(const RoundsTask& task, uint32_t blocks, Timed& timed) const {
        wrong_.clear(card_.stream());
        card_.launch(check_streaming, {blocks, 256, 0}, CheckTask{task, wrong_.data()});
        card_.finish();
        const uint32_t wrong = wrong_.host()[0];
        must_hold(wrong == 0, "the streamers of " + std::to_string(wrong) + " blocks read wrongly");
        double gb_per_s = 0;
        const std::vector<Streaming> streaming = streaming_.host();
        for (uint32_t block = 0; block < blocks; ++block) {
            must_hold(streaming[block].pages > 0, "a block streamed nothing");
            gb_per_s += static_cast<double>(streaming[block].pages * kLoadPageBytes) /
                        static_cast<double>(streaming[block].ns);
        }
        timed.streamed_gb_per_s.push_back(gb_per_s);
    }

    const Card& card_;
    const Weights& weights_;
    Array<Streaming> streaming_;
    Array<Timing> timing_;
    Array<uint32_t> cycles_;
    Array<uint64_t> over_;
    Array<uint32_t> wrong_;
};

}  // namespace tessera::ground
