#include "tessera/sampling.h"

#include <cmath>
#include <utility>

#include <fmt/format.h>

namespace tessera {

std::optional<std::string> Sampling::problem() const {
    const auto outside = [](const char* field, float value, const char* range) {
        return fmt::format("{} is {}, expected {}", field, value, range);
    };
    if (!(temperature >= 0 && temperature <= 100))
        return outside("temperature", temperature, "0 (greedy) to 100");
    if (!(top_p > 0 && top_p <= 1)) return outside("top-p", top_p, "more than 0, at most 1");
    if (!(min_p >= 0 && min_p <= 1)) return outside("min-p", min_p, "0 to 1");
    for (const auto& [field, value] : {std::pair{"presence-penalty", presence_penalty},
                                       std::pair{"frequency-penalty", frequency_penalty}})
        if (!(value >= -2 && value <= 2)) return outside(field, value, "-2 to 2");
    return std::nullopt;
}

}  // namespace tessera
