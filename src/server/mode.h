// How a request is served: a choice made by the id of the model, over the same weights.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace tessera {

enum class Mode : uint8_t {
    kBase,        // one token a step
    kUltraspeed,  // with drafts, ahead of the others, at a higher price
};

inline constexpr std::array kModes = {Mode::kBase, Mode::kUltraspeed};

// As it stands in flags, in the store and in reports: "base", "ultraspeed".
constexpr std::string_view mode_name(Mode mode) {
    return mode == Mode::kBase ? "base" : "ultraspeed";
}

// The mode of a name; none if there is no such mode.
constexpr std::optional<Mode> mode_of(std::string_view name) {
    for (const Mode mode : kModes)
        if (mode_name(mode) == name) return mode;
    return std::nullopt;
}

}  // namespace tessera
