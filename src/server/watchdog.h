// Notices work that never ends: a step of the model that hangs would hang every client with it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

namespace tessera {

class Watchdog {
  public:
    // Calls `expired`, once, from a thread of its own, when some work takes longer than
    // `limit_s`; with the seconds that it has taken.
    Watchdog(double limit_s, std::function<void(double seconds)> expired);
    ~Watchdog();

    // Around one piece of work. While it lives the clock runs. Cheap; one at a time.
    class Work {
      public:
        explicit Work(Watchdog& watchdog) : watchdog_(watchdog) { watchdog_.begun_ = now_ns(); }
        ~Work() { watchdog_.begun_ = 0; }
        Work(const Work&) = delete;
        Work& operator=(const Work&) = delete;

      private:
        Watchdog& watchdog_;
    };

  private:
    static int64_t now_ns() {
        return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
    }
    void watch();

    const double limit_s_;
    const std::function<void(double)> expired_;
    std::atomic<int64_t> begun_ = 0;  // 0: nothing is under way
    std::mutex mutex_;
    std::condition_variable changed_;
    bool over_ = false;
    std::thread thread_;
};

}  // namespace tessera
