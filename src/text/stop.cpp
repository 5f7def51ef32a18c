#include "text/stop.h"

#include <algorithm>
#include <utility>

namespace tessera {

StopFinder::StopFinder(std::vector<std::string> stops) : stops_(std::move(stops)) {
    std::erase(stops_, "");
    for (const std::string& stop : stops_) longest_ = std::max(longest_, stop.size());
}

std::string StopFinder::push(std::string_view text) {
    if (stopped_) return "";
    held_ += text;
    // A stop string that is complete now and was not before ends within `text`, so of what was held
    // only the last longest_ - 1 bytes matter: they are all that was kept.
    size_t first_end = held_.npos, begin = held_.npos;
    for (const std::string& stop : stops_) {
        const size_t found = held_.find(stop);
        if (found == held_.npos) continue;
        const size_t end = found + stop.size();
        if (end < first_end || (end == first_end && found < begin)) {
            first_end = end;
            begin = found;
            stop_ = stop;
        }
    }
    if (begin != held_.npos) {
        stopped_ = true;
        return std::exchange(held_, "").substr(0, begin);
    }
    // Keep the longest tail that a stop string begins with.
    size_t tail = std::min(held_.size(), longest_ == 0 ? 0 : longest_ - 1);
    const auto may_stop = [&](size_t length) {
        const std::string_view end = std::string_view(held_).substr(held_.size() - length);
        return std::ranges::any_of(stops_,
                                   [&](const std::string& stop) { return stop.starts_with(end); });
    };
    while (tail > 0 && !may_stop(tail)) --tail;
    std::string certain = held_.substr(0, held_.size() - tail);
    held_.erase(0, certain.size());
    return certain;
}

std::string StopFinder::finish() {
    return stopped_ ? "" : std::exchange(held_, "");
}

}  // namespace tessera
