// Stop strings: where a reply ends before the model says so. Owns the text that may yet become one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tessera {

// One per reply. The text given back ends right before the first stop string that is complete, and
// does not depend on how the reply was cut into pieces.
class StopFinder {
  public:
    // Empty strings are ignored. The one that is complete first counts; of two, the longer.
    explicit StopFinder(std::vector<std::string> stops);

    // The part of the reply that is now certain to stay. Nothing after stopped().
    std::string push(std::string_view text);

    // The reply is over: what was held back.
    std::string finish();

    bool stopped() const { return stopped_; }
    const std::string& stop() const { return stop_; }  // the one that was complete; else empty

  private:
    std::vector<std::string> stops_;
    std::string held_;  // shorter than the longest stop string between calls
    size_t longest_ = 0;
    std::string stop_;
    bool stopped_ = false;
};

}  // namespace tessera
