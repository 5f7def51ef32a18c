// Persistent threads that take turns together: the caller and the others run one function each, and
// the turn ends when all have. Between turns they spin briefly, then park. Knows no tiles.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "runtime/signals.h"

namespace tessera {

class Workers {
  public:
    // `groups` of `each` workers, of whom the caller of everyone() is the first. With `pin` the
    // others keep to cores of their own, each group on a memory node: see place_workers.
    Workers(uint32_t groups, uint32_t each, bool pin);
    ~Workers();
    Workers(const Workers&) = delete;
    Workers& operator=(const Workers&) = delete;

    // Calls work(worker) on every worker, from one thread at a time. Does not allocate.
    void everyone(const std::function<void(uint32_t worker)>& work);

    uint32_t count() const { return static_cast<uint32_t>(threads_.size()) + 1; }

  private:
    void serve(uint32_t worker);

    const std::function<void(uint32_t worker)>* work_ = nullptr;  // of the turn that runs
    Event begun_, ended_;             // turns; workers that finished one
    std::atomic<uint32_t> bell_ = 0;  // rung at every turn, for those that park
    std::atomic<bool> stopping_ = false;
    uint64_t turns_ = 0;
    std::vector<std::jthread> threads_;
};

}  // namespace tessera
