#include "runtime/workers.h"

#include <optional>

#include <pthread.h>
#include <sched.h>

#include "base/check.h"
#include "base/topology.h"

namespace tessera {
namespace {

// About 20 and 50 microseconds of pausing: longer than a tile's wait should be, shorter than what
// waking a parked thread costs, twice.
constexpr uint32_t kSpinsBeforeYield = 2000;
constexpr uint32_t kSpinsBeforePark = 5000;
// A wait of a minute is a bug in a program that was proved to end: say who waits.
constexpr uint64_t kYieldsMax = 200'000'000;

void pin_to(pthread_t thread, uint32_t cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu >= CPU_SETSIZE) return;
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(thread, sizeof set, &set);  // advice: a refusal changes nothing
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

Workers::Workers(uint32_t groups, uint32_t each, bool pin) {
    CHECK(groups > 0 && each > 0);
    const uint32_t count = groups * each;
    std::vector<std::optional<uint32_t>> cpus(count);
    if (pin) cpus = place_workers(topology(), groups, each, static_cast<uint32_t>(sched_getcpu()));
    for (uint32_t worker = 1; worker < count; ++worker) {
        threads_.emplace_back([this, worker] { serve(worker); });
        if (cpus[worker]) pin_to(threads_.back().native_handle(), *cpus[worker]);
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
