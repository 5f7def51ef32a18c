// Where a step's time goes: for every tile when its worker began to wait, to work, and was done.
// Written as a Chrome trace, which Perfetto and chrome://tracing open.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "plan/program.h"

namespace tessera {

class Trace {
  public:
    struct Stamp {
        Tile tile;
        int64_t waited_ns, began_ns, ended_ns;  // since the trace began
    };

    // Room for `tiles_max` tiles of each worker; nothing is allocated later.
    Trace(uint32_t workers, size_t tiles_max);

    int64_t now_ns() const {
        return std::chrono::duration_cast<std::chrono::nanoseconds>(
                   std::chrono::steady_clock::now() - begun_)
            .count();
    }

    // Called by that worker alone; what does not fit is dropped.
    void add(uint32_t worker, const Stamp& stamp) {
        std::vector<Stamp>& stamps = workers_[worker];
        if (stamps.size() < stamps.capacity()) stamps.push_back(stamp);
    }

    const std::vector<std::vector<Stamp>>& workers() const { return workers_; }

    // Throws Error if the file cannot be written.
    void write(const std::filesystem::path& file) const;

  private:
    std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
    std::vector<std::vector<Stamp>> workers_;
};

}  // namespace tessera
