#include "base/progress.h"

#include <cstdio>

#include <fmt/format.h>
#include <unistd.h>

#include "base/memory.h"

namespace tessera {
namespace {

using namespace std::chrono_literals;

constexpr auto kSilence = 200ms;        // what ends sooner needs no bar
constexpr auto kTerminalPeriod = 50ms;  // between redraws
constexpr auto kPipePeriod = 5s;        // between lines
constexpr uint32_t kBarWidth = 32;      // characters

}  // namespace

Progress::Progress(std::string what, std::string unit)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      terminal_(isatty(STDERR_FILENO) == 1),
      begun_(Clock::now()),
      shown_(begun_) {}

Progress::~Progress() {
    if (terminal_ && drawn_) std::fputc('\n', stderr);
}

std::string Progress::amount(uint64_t count) const {
    return unit_.empty() ? bytes_text(count) : fmt::format("{} {}", count, unit_);
}

void Progress::show(uint64_t done, uint64_t total) {
    const auto now = Clock::now();
    if (now - begun_ < kSilence || total == 0) return;
    if (now - shown_ < (terminal_ ? kTerminalPeriod : kPipePeriod) && done < total) return;
    shown_ = now;
    drawn_ = true;
    const double share = static_cast<double>(done) / static_cast<double>(total);
    const double seconds = std::chrono::duration<double>(now - begun_).count();
    const std::string rate = amount(static_cast<uint64_t>(static_cast<double>(done) / seconds));
    if (terminal_) {
        const auto filled = static_cast<uint32_t>(share * kBarWidth);
        fmt::print(stderr, "\r{} [{:=<{}}{: <{}}] {:3.0f}% of {}, {}/s ", what_, "", filled, "",
                   kBarWidth - filled, share * 100, amount(total), rate);
    } else {
        fmt::print(stderr, "{}: {:.0f}% of {}, {}/s\n", what_, share * 100, amount(total), rate);
    }
    std::fflush(stderr);
}

}  // namespace tessera
