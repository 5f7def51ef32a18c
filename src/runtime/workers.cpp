#include "runtime/workers.h"

#include <algorithm>

#include <pthread.h>
#include <sched.h>

#include "base/check.h"

namespace tessera {
namespace {

// About 20 and 50 microseconds of pausing: longer than a tile's wait should be, shorter than what
// waking a parked thread costs, twice.
constexpr uint32_t kSpinsBeforeYield = 2000;
constexpr uint32_t kSpinsBeforePark = 5000;
// A wait of a minute is a bug in a program that was proved to end: say who waits.
constexpr uint64_t kYieldsMax = 200'000'000;

void pin_to(pthread_t thread, int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    pthread_setaffinity_np(thread, sizeof set, &set);  // advice: a refusal changes nothing
}

// Those that the process may use, the one that the caller runs on first: it stays there if nothing
// else runs, and a worker pinned beside it on the same core would make every wait a time slice.
std::vector<int> allowed_cores() {
    cpu_set_t set;
    CPU_ZERO(&set);
    std::vector<int> cores;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
    for (int core = 0; core < CPU_SETSIZE; ++core)
        if (CPU_ISSET(core, &set)) cores.push_back(core);
    const auto own = std::ranges::find(cores, sched_getcpu());
    if (own != cores.end()) std::rotate(cores.begin(), own, own + 1);
    return cores;
}

}  // namespace

void wait(const Event& event, uint64_t count) {
    for (uint32_t spin = 0; spin < kSpinsBeforeYield; ++spin) {
        if (has(event, count)) return;
        pause_briefly();
    }
    for (uint64_t yields = 0; !has(event, count); ++yields) {
        CHECK(yields < kYieldsMax);  // a signal that the program promised has not come
        sched_yield();
    }
}

Workers::Workers(uint32_t count, bool pin) {
    CHECK(count > 0);
    const std::vector<int> cores = allowed_cores();
    for (uint32_t worker = 1; worker < count; ++worker) {
        threads_.emplace_back([this, worker] { serve(worker); });
        if (pin && cores.size() >= count) pin_to(threads_.back().native_handle(), cores[worker]);
    }
}

Workers::~Workers() {
    stopping_ = true;
    signal(begun_);
    ++bell_;
    bell_.notify_all();
}

void Workers::everyone(const std::function<void(uint32_t worker)>& work) {
    work_ = &work;
    ++turns_;
    signal(begun_);
    ++bell_;
    bell_.notify_all();
    work(0);
    wait(ended_, turns_ * threads_.size());
}

// A worker's life: the n-th turn begins when begun_ has n.
void Workers::serve(uint32_t worker) {
    for (uint64_t turn = 1;; ++turn) {
        for (uint32_t spin = 0; !has(begun_, turn); ++spin) {
            if (spin < kSpinsBeforePark) {
                pause_briefly();
                continue;
            }
            const uint32_t heard = bell_.load();
            if (!has(begun_, turn)) bell_.wait(heard);
        }
        if (stopping_) return;
        (*work_)(worker);
        signal(ended_);
    }
}

}  // namespace tessera
