#include "server/watchdog.h"

#include <algorithm>
#include <utility>

namespace tessera {

Watchdog::Watchdog(double limit_s, std::function<void(double)> expired)
    : limit_s_(limit_s), expired_(std::move(expired)), thread_([this] { watch(); }) {}

Watchdog::~Watchdog() {
    {
        const std::scoped_lock lock(mutex_);
        over_ = true;
    }
    changed_.notify_all();
    thread_.join();
}

void Watchdog::watch() {
    // Looking four times within the limit finds a hang at most a quarter late.
    const std::chrono::duration<double> pause(std::clamp(limit_s_ / 4, 0.001, 1.0));
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, pause, [&] { return over_; })) {
        const int64_t begun = begun_;
        if (begun == 0) continue;
        const double seconds = 1e-9 * static_cast<double>(now_ns() - begun);
        if (seconds < limit_s_) continue;
        lock.unlock();
        expired_(seconds);
        return;
    }
}

}  // namespace tessera
