// The words of CUDA C++ that the project's kernels use, for a compiler that has none of them:
// included before each of the emulated card's .cu files.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include <cuda_runtime_api.h>

#include "gpu/emulated/threads.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

using std::max;
using std::min;

// ---- Numbers: rounded once, since this is compiled with -ffp-contract=off -----------------------

inline float __uint_as_float(uint32_t bits) {
    return std::bit_cast<float>(bits);
}
inline uint32_t __float_as_uint(float value) {
    return std::bit_cast<uint32_t>(value);
}
// Towards zero.
inline float __uint2float_rz(uint32_t value) {
    const int excess = std::max(0, 8 - std::countl_zero(value));
    return static_cast<float>(value >> excess << excess);
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fsub_rn(float a, float b) {
    return a - b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
// A card's differ in last bits.
inline float __fdividef(float a, float b) {
    return a / b;
}
inline float rsqrtf(float x) {
    return 1.0f / std::sqrt(x);
}
inline float __expf(float x) {
    return std::exp(x);
}

inline int __popc(uint32_t bits) {
    return std::popcount(bits);
}
inline int __ffs(uint32_t bits) {
    return bits == 0 ? 0 : std::countr_zero(bits) + 1;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(uint64_t{a} * b >> 32);
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    uint32_t out = 0;
    for (uint32_t i = 0; i < 4; ++i)
        out |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return out;
}

// ---- Memory -------------------------------------------------------------------------------------

template <typename T>
T __ldg(const T* from) {
    return *from;
}
template <typename T>
T atomicOr(T* to, T bits) {
    const T before = *to;
    *to |= bits;
    emulated::tell_block();
    return before;
}
inline void __threadfence_system() {}
inline void cudaGridDependencySynchronize() {}

// ---- Threads ------------------------------------------------------------------------------------

inline void __trap() {
    emulated::trap();
}
inline void __nanosleep(uint32_t) {}
inline void __syncthreads() {
    emulated::wait_at_barrier_of_all();
}
inline void __syncwarp(uint32_t mask = ~0u) {
    emulated::meet(emulated::Meeting::sync, mask);
}

template <typename T>
T shuffled(emulated::Meeting how, uint32_t mask, T value, uint32_t argument) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(value));
    bits = emulated::meet(how, mask, bits, argument);
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}
template <typename T>
T __shfl_sync(uint32_t mask, T value, uint32_t lane) {
    return shuffled(emulated::Meeting::shuffle, mask, value, lane);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, uint32_t distance) {
    return shuffled(emulated::Meeting::shuffle_xor, mask, value, distance);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, uint32_t distance) {
    return shuffled(emulated::Meeting::shuffle_up, mask, value, distance);
}
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t value) {
    return static_cast<uint32_t>(emulated::meet(emulated::Meeting::add, mask, value));
}
inline uint32_t __ballot_sync(uint32_t mask, bool yes) {
    return __reduce_add_sync(mask, yes ? 1u << threadIdx.x % emulated::kLanes : 0u);
}
inline uint32_t __reduce_min_sync(uint32_t mask, uint32_t value) {
    return static_cast<uint32_t>(emulated::meet(emulated::Meeting::lowest, mask, value));
}
inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t value) {
    return static_cast<uint32_t>(emulated::meet(emulated::Meeting::highest, mask, value));
}
