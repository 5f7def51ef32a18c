// Where intermediate values are rounded: nowhere (the oracle's fp32), or to bf16 wherever the
// published model stores an activation. docs/NUMERICS.md lists the places.
#pragma once

#include <cstdint>

#include "base/numbers.h"

namespace tessera {

enum class Rounding : uint8_t { none, bf16 };

// `value` as an activation that is stored.
constexpr float stored(float value, Rounding rounding) {
    return rounding == Rounding::bf16 ? round_bf16(value) : value;
}

}  // namespace tessera
