// How far a long thing has come: a bar on a terminal, a line now and then in a pipe.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace tessera {

class Progress {
  public:
    // Writes to stderr once something takes longer than a moment; `what` says what is being done.
    // `unit` is what show() counts, in the plural; bytes if it is empty.
    explicit Progress(std::string what, std::string unit = "");
    ~Progress();  // ends the bar's line
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    // Cheap to call often.
    void show(uint64_t done, uint64_t total);

  private:
    using Clock = std::chrono::steady_clock;

    std::string amount(uint64_t count) const;

    std::string what_, unit_;
    bool terminal_;
    bool drawn_ = false;
    Clock::time_point begun_;
    Clock::time_point shown_;
};

}  // namespace tessera
