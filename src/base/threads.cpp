#include "base/threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include <sched.h>

namespace tessera {

uint32_t available_threads() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
    return static_cast<uint32_t>(std::max(1, CPU_COUNT(&set)));
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
