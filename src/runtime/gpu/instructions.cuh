// Instructions that CUDA has no word for, one function each: what the primitives are made of. An
// emulated card has its own (tests/gpu/emulated), so nothing is decided here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::gpu {

// ---- The block's shared memory ------------------------------------------------------------------

// What the launch asked for.
__device__ inline std::byte* dynamic_shared() {
    extern __shared__ __align__(128) std::byte memory[];
    return memory;
}

// The kernel's own: one of each type.
template <typename T>
__device__ inline T& static_shared() {
    __shared__ T one;
    return one;
}

__device__ inline uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- Time, and other threads --------------------------------------------------------------------

__device__ inline uint64_t now_ns() {
    uint64_t time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time)::"memory");
    return time;
}

// A thread that polls holds up none: where threads take turns, this is where one gives its own
// away.
__device__ inline void let_others_run() {}

// A barrier among the first `threads` of a block; `id` 1 to 15 (0 is __syncthreads).
__device__ inline void sync_threads(uint32_t id, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A barrier among all threads of a cluster, once, after init_done: no slice meets a bare barrier.
__device__ inline void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// ---- Global memory ------------------------------------------------------------------------------

__device__ inline void add_release_gpu(uint64_t* to, uint64_t by) {
    asm volatile("red.release.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(by) : "memory");
}
__device__ inline void store_release_gpu(uint64_t* to, uint64_t value) {
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ inline void store_release_sys(uint64_t* to, uint64_t value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ inline uint64_t load_acquire_gpu(const uint64_t* from) {
    uint64_t value;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
}
__device__ inline uint64_t load_relaxed_gpu(const uint64_t* from) {
    uint64_t value;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
}
__device__ inline void fence_acq_rel_gpu() {
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

// Adds one; what it was before.
__device__ inline uint64_t increment_acq_rel_gpu(uint64_t* counter) {
    uint64_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], 1;"
                 : "=l"(before)
                 : "l"(counter)
                 : "memory");
    return before;
}
// Adds one, or makes zero of `highest`; what it was before.
__device__ inline uint32_t wrap_acq_rel_gpu(uint32_t* counter, uint32_t highest) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counter), "r"(highest)
                 : "memory");
    return before;
}

// Asks for a line of global memory, for a load that comes soon.
__device__ inline void ask_ahead(const void* from) {
    asm volatile("prefetch.global.L1 [%0];" ::"l"(from));
}

// ---- Barriers of pages, and bulk copies ---------------------------------------------------------

using PageBarrier = uint64_t;  // an mbarrier in shared memory

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

// Whether the barrier's phase of `parity` is over; it may wait a little for that.
__device__ inline bool has_finished(PageBarrier* barrier, uint32_t parity) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return done != 0;
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

// `bytes`, a multiple of 16, which count towards `full` when they have come.
__device__ inline void copy_to_page(void* page, const void* from, uint32_t bytes,
                                    PageBarrier* full) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(page)),
        "l"(from), "r"(bytes), "r"(shared_address(full))
        : "memory");
}
__device__ inline void copy_to_page(void* page, const void* from, uint32_t bytes, PageBarrier* full,
                                    uint64_t l2_policy) {
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

}  // namespace tessera::gpu
