#include "base/threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/control_group.h"
#include "base/topology.h"

namespace tessera {

uint32_t available_threads() {
    const auto cores = static_cast<uint32_t>(topology().cores.size());
    // More threads than the group's time lasts for are all stopped for the rest of each period, and
    // those that spin use it up for those that work.
    const std::optional<double> cpus = read_control_group().cpus;
    return cpus && *cpus < cores ? std::max(1u, static_cast<uint32_t>(*cpus)) : cores;
}

void parallel_for(size_t count, uint32_t threads, const std::function<void(size_t)>& task) {
    std::atomic<size_t> next = 0;
    std::exception_ptr first;
    std::mutex guard;
    const auto work = [&] {
        try {
            for (size_t i = next++; i < count; i = next++) task(i);
        } catch (...) {
            const std::scoped_lock lock(guard);
            if (!first) first = std::current_exception();
            next = count;
        }
    };
    {
        std::vector<std::jthread> others;
        const size_t helpers = std::min<size_t>(threads, count);
        for (size_t i = 1; i < helpers; ++i) others.emplace_back(work);
        work();
    }
    if (first) std::rethrow_exception(first);
}

}  // namespace tessera
