// The primitives that order memory on the GPU: signal, wait and page_load, each with the reason why
// its order suffices. No other code of the GPU runtime touches memory order (but for the one-line
// instructions that they are made of, instructions.cuh). The fourth, exchange, comes with the
// second GPU.
//
// Every wait has a limit. One that lasts longer leaves a note of who waits for what in host memory,
// which outlives the context, and traps: a bug ends the kernel, it does not hang the card. Ruled
// out: printf, whose buffer a trap does not flush.
#pragma once

#include "runtime/gpu/instructions.cuh"

namespace tessera::gpu {

constexpr uint64_t kSpinLimitNs = 2'000'000'000;

enum class Awaited : uint32_t {
    kNothing,
    kEvent,
    kFullPage,
    kEmptyPage,
    kDeposits,
    kVerdict,
    kRouting
};

// Who waits for its own block's warps may wait twice as long: what those wait for is the cause, and
// theirs is the note that is left.
constexpr __host__ __device__ uint64_t spin_limit_ns(Awaited awaited) {
    return awaited == Awaited::kEvent || awaited == Awaited::kFullPage ? kSpinLimitNs
                                                                       : 2 * kSpinLimitNs;
}

// What a block leaves behind when it gives up. A board has one entry a block, in pinned host
// memory.
struct Distress {
    Awaited awaited;
    uint32_t thread;
    uint64_t needed;  // the event's count, or the parity of the page's phase
    uint64_t seen;
};

// Counts the polls of one wait and looks at the clock at every 64th.
class SpinLimit {
  public:
    __device__ void poll(Distress* board, Awaited awaited, uint64_t needed, uint64_t seen) {
        let_others_run();
        if (++polls_ % 64 != 0) return;
        const uint64_t now = now_ns();
        if (began_ns_ == 0) began_ns_ = now;
        if (now - began_ns_ < spin_limit_ns(awaited)) return;
        board[blockIdx.x] = {awaited, threadIdx.x, needed, seen};
        __threadfence_system();
        __trap();
    }

  private:
    uint32_t polls_ = 0;
    uint64_t began_ns_ = 0;
};

// ---- Events: counts in global memory that only go up -------------------------------------------

// Release at GPU scope: whoever acquires the new count sees what this thread wrote before, and,
// since release is cumulative, what other threads of the block wrote before a barrier that both
// passed. So one thread signals for its block. It does not order the async proxy (bulk copies):
// async_fence.
__device__ inline void signal(uint64_t* event, uint64_t by = 1) {
    add_release_gpu(event, by);
}

// The same for an event with one writer: a store, no atomic.
__device__ inline void publish(uint64_t* event, uint64_t count) {
    store_release_gpu(event, count);
}

// For the host, in its memory: release at system scope, so that who reads the count there with
// acquire sees what this thread wrote before.
__device__ inline void publish_to_host(uint64_t* count, uint64_t to) {
    store_release_sys(count, to);
}

// Signals and says what the count is now: the last to arrive learns it without a wait. Its acquire
// pairs with the signals of those who came before.
__device__ inline uint64_t signal_and_count(uint64_t* event) {
    return increment_acq_rel_gpu(event) + 1;
}

// Arrives at a counter that `count` blocks arrive at, and says whether this was the last of them.
// It wraps: the next round finds zero. Release and acquire as signal_and_count.
__device__ inline bool arrive_last(uint32_t* counter, uint32_t count) {
    return wrap_acq_rel_gpu(counter, count - 1) == count - 1;
}

// Acquire at GPU scope: pairs with the release above. It also drops the SM's first cache, so that
// plain loads of the whole block see the writes, once a barrier has told the block.
__device__ inline uint64_t count_of(const uint64_t* event) {
    return load_acquire_gpu(event);
}

// Returns once the event has `count`.
__device__ inline void wait(const uint64_t* event, uint64_t count, Distress* board) {
    SpinLimit limit;
    for (uint64_t seen = count_of(event); seen < count; seen = count_of(event)) {
        limit.poll(board, Awaited::kEvent, count, seen);
    }
}

// The same by relaxed polls and one fence at the end: a relaxed read followed by a fence acquires.
// A poll leaves the first cache alone. bench/gpu/ground says which of the two stays.
__device__ inline void wait_then_fence(const uint64_t* event, uint64_t count, Distress* board) {
    SpinLimit limit;
    for (uint64_t seen = load_relaxed_gpu(event); seen < count; seen = load_relaxed_gpu(event)) {
        limit.poll(board, Awaited::kEvent, count, seen);
    }
    fence_acq_rel_gpu();
}

// ---- Pages: bulk copies from global into shared memory -----------------------------------------

// Acquire at block scope, the default: sees what arrived, the bytes of bulk copies included. A
// fresh barrier counts as having finished a phase of parity 1.
__device__ inline void wait(PageBarrier* barrier, uint32_t parity, Awaited awaited,
                            Distress* board) {
    SpinLimit limit;
    while (!has_finished(barrier, parity)) limit.poll(board, awaited, parity, 0);
}

// Copies `bytes` (a multiple of 16) to a page; its bytes count towards `full`, whose phase they end
// with release, so that `wait(full)` is all a reader needs. Armed before the copy is asked for.
__device__ inline void page_load(void* page, const void* from, uint32_t bytes, PageBarrier* full) {
    arrive_expecting(full, bytes);
    copy_to_page(page, from, bytes, full);
}
__device__ inline void page_load(void* page, const void* from, uint32_t bytes, PageBarrier* full,
                                 uint64_t l2_policy) {
    arrive_expecting(full, bytes);
    copy_to_page(page, from, bytes, full, l2_policy);
}

// The same for a page that comes in parts: first the bytes of all of them, then each.
__device__ inline void page_expect(PageBarrier* full, uint32_t bytes) {
    arrive_expecting(full, bytes);
}
__device__ inline void page_load_part(void* to, const void* from, uint32_t bytes, PageBarrier* full,
                                      uint64_t l2_policy) {
    copy_to_page(to, from, bytes, full, l2_policy);
}

}  // namespace tessera::gpu
