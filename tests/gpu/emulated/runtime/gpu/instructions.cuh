// The emulated card's memory and threads: what src/runtime/gpu/instructions.cuh has as
// instructions. Threads have turns, so every access is whole and in order by itself; an order that
// is missing on a card does not show here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gpu/emulated/threads.h"

namespace tessera::gpu {

inline std::byte* dynamic_shared() {
    return emulated::shared_memory();
}
template <typename T>
inline T& static_shared() {
    static constexpr char key = 0;
    return *static_cast<T*>(emulated::static_shared(sizeof(T), &key));
}

inline uint64_t now_ns() {
    return emulated::now_ns();
}
inline void let_others_run() {
    emulated::poll();
}
inline void sync_threads(uint32_t id, uint32_t threads) {
    emulated::wait_at_barrier(id, threads);
}

// ---- Global memory ------------------------------------------------------------------------------

inline void add_release_gpu(uint64_t* to, uint64_t by) {
    *to += by;
    emulated::tell_all();
}
inline void store_release_gpu(uint64_t* to, uint64_t value) {
    *to = value;
    emulated::tell_all();
}
inline void store_release_sys(uint64_t* to, uint64_t value) {
    store_release_gpu(to, value);
}
inline uint64_t load_acquire_gpu(const uint64_t* from) {
    return *static_cast<const volatile uint64_t*>(from);
}
inline uint64_t load_relaxed_gpu(const uint64_t* from) {
    return load_acquire_gpu(from);
}
inline void fence_acq_rel_gpu() {}
inline uint64_t increment_acq_rel_gpu(uint64_t* counter) {
    emulated::tell_all();
    return (*counter)++;
}
inline uint32_t wrap_acq_rel_gpu(uint32_t* counter, uint32_t highest) {
    const uint32_t before = *counter;
    *counter = before >= highest ? 0 : before + 1;
    emulated::tell_all();
    return before;
}

inline void ask_ahead(const void*) {}

// ---- Barriers of pages, and bulk copies ---------------------------------------------------------

using PageBarrier = uint64_t;

inline void init(PageBarrier* barrier, uint32_t arrivals) {
    emulated::init_page_barrier(barrier, arrivals);
}
inline void init_done() {}
inline void arrive(PageBarrier* barrier) {
    emulated::arrive_at_page_barrier(barrier, 0);
}
inline void arrive_expecting(PageBarrier* barrier, uint32_t bytes) {
    emulated::arrive_at_page_barrier(barrier, bytes);
}
inline bool has_finished(PageBarrier* barrier, uint32_t parity) {
    return emulated::page_barrier_finished(barrier, parity);
}
inline void async_fence() {}
inline void async_fence_shared() {}
inline uint64_t evict_first() {
    return 0;
}
inline void copy_to_page(void* page, const void* from, uint32_t bytes, PageBarrier* full) {
    emulated::copy_to_page(page, from, bytes, full);
}
inline void copy_to_page(void* page, const void* from, uint32_t bytes, PageBarrier* full,
                         uint64_t) {
    copy_to_page(page, from, bytes, full);
}

}  // namespace tessera::gpu
