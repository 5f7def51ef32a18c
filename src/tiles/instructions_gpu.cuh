// Arithmetic that CUDA has no word for, one function an instruction. An emulated card has its own
// (tests/gpu/emulated), so nothing is decided here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::gpu {

// The thread's lane, read anew: what is made of threadIdx is kept in registers through all phases,
// and there are none to spare.
__device__ inline uint32_t lane_now() {
    uint32_t lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

__device__ inline float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline uint32_t to_bf16_bits(float value) {
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ inline uint32_t pack_bf16(float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// Products of two pairs of bf16, rounded once: bit for bit what multiplying floats and rounding to
// bf16 gives, by one instruction instead of seven. A product of two such values has 16 bits, which
// a float holds exactly down to 2^-134, half of the least bf16; what is smaller becomes zero either
// way, and neither way flushes subnormal values.
__device__ inline uint32_t multiply_bf16(uint32_t a, uint32_t b) {
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

// The same plus a third pair, rounded once, too.
__device__ inline uint32_t multiply_add_bf16(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
}

// 16 rows by 16 columns of `a` times 16 by 8 of `b` onto `c`, by all lanes of a warp. Of lane
// 4 * g + q: c is (row g, columns 2q and the next), then row g + 8; a0 (row g, columns 2q and the
// next), a1 row g + 8, a2 and a3 the same eight columns further; b0 (rows 2q and the next, column
// g), b1 eight rows further.
__device__ inline void mma_m16n8k16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Copies a word into shared memory, which is there for this thread after copies_done().
__device__ inline void copy_async(uint32_t* to, const uint32_t* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(to))),
                 "l"(from)
                 : "memory");
}
__device__ inline void copies_done() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

}  // namespace tessera::gpu
