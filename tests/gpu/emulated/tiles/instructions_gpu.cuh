// The emulated card's arithmetic: what src/tiles/instructions_gpu.cuh has as instructions.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "gpu/emulated/threads.h"

namespace tessera::gpu {

inline uint32_t lane_now() {
    return threadIdx.x % 32;
}

// Within a unit in the last place of what a card says; subnormal values are zero there, too.
inline float exp2_approx(float x) {
    const float y = std::exp2(x);
    return std::fpclassify(y) == FP_SUBNORMAL ? 0.0f : y;
}

// To the nearest, of two the even.
inline uint32_t to_bf16_bits(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    if (std::isnan(value)) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline uint32_t pack_bf16(float low, float high) {
    return to_bf16_bits(low) | to_bf16_bits(high) << 16;
}

// A float holds the product but where both ways round it to zero.
inline uint32_t multiply_bf16(uint32_t a, uint32_t b) {
    const auto product = [](uint32_t low, uint32_t high) {
        return std::bit_cast<float>(low << 16) * std::bit_cast<float>(high << 16);
    };
    return pack_bf16(product(a & 0xffffu, b & 0xffffu), product(a >> 16, b >> 16));
}

// The sum is made in double, which a float of it could round a second time: its last bit is made
// odd where something was lost, as fma.rn rounds once. (Sums of 53 bits are more than such pairs
// have, but where c is so small that only its sign counts.)
inline uint32_t multiply_add_bf16(uint32_t a, uint32_t b, uint32_t c) {
    const auto sum = [](uint32_t x, uint32_t y, uint32_t z) {
        const auto wide = [](uint32_t bits) { return double{std::bit_cast<float>(bits << 16)}; };
        const double exact = wide(x) * wide(y) + wide(z);
        auto near = static_cast<float>(exact);
        auto bits = std::bit_cast<uint32_t>(near);
        if (near != exact && std::isfinite(near)) {
            if (std::fabs(near) > std::fabs(exact)) --bits;
            bits |= 1u;
        }
        return to_bf16_bits(std::bit_cast<float>(bits));
    };
    return sum(a & 0xffffu, b & 0xffffu, c & 0xffffu) | sum(a >> 16, b >> 16, c >> 16) << 16;
}

// Copies of words take place when the thread waits for its own: not before, so that who reads
// too early sees what was there.
struct AsyncCopy {
    void* to;
    const void* from;
};
inline std::vector<AsyncCopy>& async_copies() {
    static std::unordered_map<uint64_t, std::vector<AsyncCopy>> of_threads;
    return of_threads[uint64_t{blockIdx.x} << 32 | threadIdx.x];
}
inline void copy_async(uint32_t* to, const uint32_t* from) {
    async_copies().push_back({to, from});
}
inline void copies_done() {
    for (const AsyncCopy& copy : async_copies()) std::memcpy(copy.to, copy.from, 4);
    async_copies().clear();
}

inline void mma_m16n8k16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                         uint32_t b0, uint32_t b1) {
    emulated::meet_mma(c, {a0, a1, a2, a3, b0, b1});
}

}  // namespace tessera::gpu
