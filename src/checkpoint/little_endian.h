// Unsigned integers as files spell them, lowest byte first, on any host.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"

namespace tessera {

// The caller has made sure that the bytes are there.
template <std::unsigned_integral T>
T little_endian(std::span<const std::byte> bytes, size_t at) {
    CHECK(at <= bytes.size() && bytes.size() - at >= sizeof(T));
    uint64_t value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
        value |= std::to_integer<uint64_t>(bytes[at + i]) << 8 * i;
    }
    return static_cast<T>(value);
}

}  // namespace tessera
