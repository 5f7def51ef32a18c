// The primitives that order memory on the GPU: signal, wait and page_load, each with the reason why
// its order suffices. No other code of the GPU runtime touches memory order. The fourth, exchange,
// comes with the second GPU.
//
// Every wait has a limit. One that lasts longer leaves a note of who waits for what in host memory,
// which outlives the context, and traps: a bug ends the kernel, it does not hang the card. Ruled
// out: printf, whose buffer a trap does not flush.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::gpu {

constexpr uint64_t kSpinLimitNs = 2'000'000'000;

enum class Awaited : uint32_t { kNothing, kEvent, kFullPage, kEmptyPage, kDeposits, kVerdict };

// What a block leaves behind when it gives up. A board has one entry a block, in pinned host
// memory.
struct Distress {
    Awaited awaited;
    uint32_t thread;
    uint64_t needed;  // the event's count, or the parity of the page's phase
    uint64_t seen;
};

__device__ inline uint64_t now_ns() {
    uint64_t time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time)::"memory");
    return time;
}

// Counts the polls of one wait and looks at the clock at every 64th.
class SpinLimit {
  public:
    __device__ void poll(Distress* board, Awaited awaited, uint64_t needed, uint64_t seen) {
        if (++polls_ % 64 != 0) return;
        const uint64_t now = now_ns();
        if (began_ns_ == 0) began_ns_ = now;
        if (now - began_ns_ < kSpinLimitNs) return;
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
    asm volatile("red.release.gpu.global.add.u64 [%0], %1;" ::"l"(event), "l"(by) : "memory");
}

// The same for an event with one writer: a store, no atomic.
__device__ inline void publish(uint64_t* event, uint64_t count) {
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(event), "l"(count) : "memory");
}

// For the host, in its memory: release at system scope, so that who reads the count there with
// acquire sees what this thread wrote before.
__device__ inline void publish_to_host(uint64_t* count, uint64_t to) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(count), "l"(to) : "memory");
}

// Signals and says what the count is now: the last to arrive learns it without a wait. Its acquire
// pairs with the signals of those who came before.
__device__ inline uint64_t signal_and_count(uint64_t* event) {
    uint64_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], 1;"
                 : "=l"(before)
                 : "l"(event)
                 : "memory");
    return before + 1;
}

// Arrives at a counter that `count` blocks arrive at, and says whether this was the last of them.
// It wraps: the next round finds zero. Release and acquire as signal_and_count.
__device__ inline bool arrive_last(uint32_t* counter, uint32_t count) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counter), "r"(count - 1)
                 : "memory");
    return before == count - 1;
}

// Acquire at GPU scope: pairs with the release above. It also drops the SM's first cache, so that
// plain loads of the whole block see the writes, once a barrier has told the block.
__device__ inline uint64_t count_of(const uint64_t* event) {
    uint64_t count;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(count) : "l"(event) : "memory");
    return count;
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
    uint64_t seen = 0;
    while (true) {
        asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(seen) : "l"(event) : "memory");
        if (seen >= count) break;
        limit.poll(board, Awaited::kEvent, count, seen);
    }
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

// A barrier among the first `threads` of a block; `id` 1 to 15 (0 is __syncthreads).
__device__ inline void sync_threads(uint32_t id, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Within a block: counts in shared memory ----------------------------------------------------

// As arrive_last, among the warps of a block; by one lane, after __syncwarp.
__device__ inline bool warp_arrives_last(uint32_t* counter, uint32_t count) {
    uint32_t before;
    asm volatile("atom.acq_rel.cta.shared::cta.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(counter))), "r"(count - 1)
                 : "memory");
    return before == count - 1;
}

// A count with one writer at a time: release at block scope; and returns, with acquire, once it is
// `count` or more. It counts up and may wrap.
__device__ inline void publish_in_block(uint32_t* counter, uint32_t count) {
    asm volatile("st.release.cta.shared::cta.u32 [%0], %1;" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(counter))),
                 "r"(count)
                 : "memory");
}
__device__ inline void wait_in_block(const uint32_t* counter, uint32_t count, Distress* board) {
    SpinLimit limit;
    while (true) {
        uint32_t seen;
        asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];"
                     : "=r"(seen)
                     : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(counter)))
                     : "memory");
        if (static_cast<int32_t>(seen - count) >= 0) return;
        limit.poll(board, Awaited::kDeposits, count, seen);
        __nanosleep(20);  // leaves the instructions of this part of the SM to those who work
    }
}

// ---- Pages: bulk copies from global into shared memory -----------------------------------------

using PageBarrier = uint64_t;  // an mbarrier in shared memory

__device__ inline uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void init(PageBarrier* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

// After the last init and before the block's first barrier: bulk copies see initialised barriers.
__device__ inline void init_done() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Release at block scope, the default: what this thread read from the page was read before a loader
// that waits for the arrivals asks for the next page into the same place.
__device__ inline void arrive(PageBarrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
}

// Arrives, and makes the phase last until `bytes` have come.
__device__ inline void arrive_expecting(PageBarrier* barrier, uint32_t bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}

// Acquire at block scope, the default: sees what arrived, the bytes of bulk copies included. A
// fresh barrier counts as having finished a phase of parity 1.
__device__ inline void wait(PageBarrier* barrier, uint32_t parity, Awaited awaited,
                            Distress* board) {
    const uint32_t address = shared_address(barrier);
    SpinLimit limit;
    while (true) {
        uint32_t done;
        asm volatile(
            "{\n.reg .pred done;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
            "selp.u32 %0, 1, 0, done;\n}"
            : "=r"(done)
            : "r"(address), "r"(parity)
            : "memory");
        if (done) return;
        limit.poll(board, awaited, parity, 0);
    }
}

// Orders this thread's ordinary accesses of global memory, and those it has acquired, against bulk
// copies. Data written on the GPU and then read by a bulk copy needs it on both sides: in each
// writing thread before its block's barrier and signal, and in the loader between wait and
// page_load. Weights, written before the launch, need none.
__device__ inline void async_fence() {
    asm volatile("fence.proxy.async.global;" ::: "memory");
}

// The same for shared memory, for a thread that reads a page and then overwrites it by a bulk copy.
__device__ inline void async_fence_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// For weights, which are read once: their lines leave the L2 first.
__device__ inline uint64_t evict_first() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// Copies `bytes` (a multiple of 16) to a page; its bytes count towards `full`, whose phase they end
// with release, so that `wait(full)` is all a reader needs. Armed before the copy is asked for.
__device__ inline void page_load(void* page, const void* from, uint32_t bytes, PageBarrier* full) {
    arrive_expecting(full, bytes);
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(page)),
        "l"(from), "r"(bytes), "r"(shared_address(full))
        : "memory");
}

__device__ inline void page_load(void* page, const void* from, uint32_t bytes, PageBarrier* full,
                                 uint64_t l2_policy) {
    arrive_expecting(full, bytes);
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(page)),
        "l"(from), "r"(bytes), "r"(shared_address(full)), "l"(l2_policy)
        : "memory");
}

// Copies a slice to the same place in every block of the cluster that `blocks` names; each armed
// its own barrier for all slices. A slice may come before its receiver has armed: the phase waits
// for the arrival, and the count of bytes may be negative meanwhile.
__device__ inline void slice_load(void* page, const void* from, uint32_t bytes, PageBarrier* full,
                                  uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(page)),
        "l"(from), "r"(bytes), "r"(shared_address(full)), "h"(blocks)
        : "memory");
}

// A barrier among all threads of a cluster, once, after init_done: no slice meets a bare barrier.
__device__ inline void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

}  // namespace tessera::gpu
