// Rows of activations on the GPU: normalisation, rounding, the experts' gate, and which experts a
// step needs. As on the CPU (tiles/rows_cpu.cpp, routes.cpp), with sums in an order that the row
// alone fixes.
#pragma once

#include <cstdint>

#include "tiles/instructions_gpu.cuh"
#include "tiles/routes.h"

namespace tessera::gpu {

// a / b for quotients below 2^20: ten instructions instead of twenty-five.
__device__ inline uint32_t divide(uint32_t a, uint32_t b) {
    const auto near = static_cast<uint32_t>(__fdividef(__uint2float_rz(a), static_cast<float>(b)));
    const auto rest = static_cast<int32_t>(a - near * b);  // the quotient is one off at most
    return near + (rest < 0 ? -1 : rest >= static_cast<int32_t>(b) ? 1 : 0);
}

__device__ inline float from_bf16(uint32_t bits) {
    return __uint_as_float(bits << 16);
}

__device__ inline float round_to_bf16(float value) {
    return from_bf16(to_bf16_bits(value));
}

__device__ inline float warp_sum(float x) {
#pragma unroll
    for (uint32_t offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
    return x;
}

// One over the root of a mean square, within two units in the last place: IEEE's root and quotient
// are calls, which cost registers wherever they stand.
__device__ inline float inverse_root(float squares, uint32_t count, float epsilon) {
    return rsqrtf(__fdividef(squares, static_cast<float>(count)) + epsilon);
}

// bf16(silu(bf16(gate)) * bf16(up)).
__device__ inline uint32_t gated(float gate, float up) {
    const float g = round_to_bf16(gate);
    return to_bf16_bits(g * __fdividef(1.0f, 1.0f + __expf(-g)) * round_to_bf16(up));
}

// The residual stream, rounded where the model rounds it.
__device__ inline void add_residual(uint16_t* x, float update) {
    *x = static_cast<uint16_t>(to_bf16_bits(from_bf16(*x) + round_to_bf16(update)));
}

__device__ inline float low_half(uint32_t both) {
    return __uint_as_float(both << 16);
}
__device__ inline float high_half(uint32_t both) {
    return __uint_as_float(both & 0xffff0000u);
}

// The gains of eight columns where a checkpoint has them as floats.
struct FloatGains {
    float at[8];

    __device__ static FloatGains ask(const float* from) {
        const float4 a = __ldg(reinterpret_cast<const float4*>(from));
        const float4 b = __ldg(reinterpret_cast<const float4*>(from) + 1);
        return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
    }
    __device__ FloatGains times(float power_of_two) const {
        FloatGains out;
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) out.at[i] = at[i] * power_of_two;
        return out;
    }
};

// Eight bf16 values, which a thread reads and writes at once.
struct Eight {
    uint32_t at[4];

    __device__ static Eight load(const uint16_t* from) {
        const uint4 v = *reinterpret_cast<const uint4*>(from);
        return {{v.x, v.y, v.z, v.w}};
    }
    // Gains, which nobody writes meanwhile.
    __device__ static Eight ask(const uint16_t* from) {
        const uint4 v = __ldg(reinterpret_cast<const uint4*>(from));
        return {{v.x, v.y, v.z, v.w}};
    }
    __device__ void store(uint16_t* to) const {
        *reinterpret_cast<uint4*>(to) = {at[0], at[1], at[2], at[3]};
    }
    __device__ float squares() const {
        const auto of_pair = [&](uint32_t both) {
            return low_half(both) * low_half(both) + high_half(both) * high_half(both);
        };
        return of_pair(at[0]) + of_pair(at[1]) + of_pair(at[2]) + of_pair(at[3]);
    }
    // bf16(bf16(x * inverse) * gain). A power of two in `gain` scales the result and rounds nothing
    // else.
    __device__ Eight normed(float inverse, const FloatGains& gains) const {
        Eight out;
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t even = rounded(i, inverse);
            out.at[i] =
                pack_bf16(low_half(even) * gains.at[2 * i], high_half(even) * gains.at[2 * i + 1]);
        }
        return out;
    }
    __device__ Eight normed(float inverse, const Eight& gains) const {
        Eight out;
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i)
            out.at[i] = multiply_bf16(rounded(i, inverse), gains.at[i]);
        return out;
    }
    // A power of two that is a bf16 value.
    __device__ Eight times(float power_of_two) const {
        const uint32_t both = pack_bf16(power_of_two, power_of_two);
        Eight out;
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) out.at[i] = multiply_bf16(at[i], both);
        return out;
    }

  private:
    // bf16(x * inverse) of a pair.
    __device__ uint32_t rounded(uint32_t pair, float inverse) const {
        return pack_bf16(low_half(at[pair]) * inverse, high_half(at[pair]) * inverse);
    }
};

// `all` rows of `width` values (a multiple of 8) into shared rows `stride` apart, by `threads`
// threads; zeros up to whole panels, and in rows from `rows` on; all times a power of two.
// row_at(row) is where a row lies. A thread's loads are in flight together.
template <typename RowAt>
__device__ inline void copy_rows(RowAt row_at, uint32_t rows, uint32_t all, uint32_t width,
                                 uint16_t* out, uint32_t stride, float times, uint32_t thread,
                                 uint32_t threads) {
    const uint32_t eights = (width + 127) / 128 * 16;
    const uint32_t rows_on = divide(threads, eights);  // what a turn moves on by
    const uint32_t eights_on = threads - rows_on * eights;
    uint32_t row = divide(thread, eights), at = thread - row * eights;
    constexpr uint32_t kTogether = 4;
#pragma unroll 1
    while (row < all) {
        Eight values[kTogether];
        uint16_t* to[kTogether];
#pragma unroll
        for (uint32_t i = 0; i < kTogether; ++i) {
            values[i] = row < rows && at * 8 < width ? Eight::load(row_at(row) + at * 8) : Eight{};
            to[i] = row < all ? out + row * stride + at * 8 : nullptr;
            row += rows_on;
            at += eights_on;
            if (at >= eights) {
                at -= eights;
                ++row;
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < kTogether; ++i)
            if (to[i] != nullptr) values[i].times(times).store(to[i]);
    }
}

// ---- Routing -----------------------------------------------------------------------------------

// The order of floats as that of integers.
__device__ inline uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The highest key of a lane's own, and which of them it is; of equal ones the first. A tree, since
// the next choice waits for it.
template <uint32_t count>
struct Highest {
    uint32_t key[count], at[count];

    __device__ static Highest of(const uint32_t (&keys)[count]) {
        Highest all;
#pragma unroll
        for (uint32_t i = 0; i < count; ++i) {
            all.key[i] = keys[i];
            all.at[i] = i;
        }
#pragma unroll
        for (uint32_t left = count; left > 1; left = (left + 1) / 2) {
#pragma unroll
            for (uint32_t i = 0; i < left / 2; ++i) {
                const bool second = all.key[2 * i + 1] > all.key[2 * i];
                all.key[i] = second ? all.key[2 * i + 1] : all.key[2 * i];
                all.at[i] = second ? all.at[2 * i + 1] : all.at[2 * i];
            }
            if (left % 2 > 0) {
                all.key[left / 2] = all.key[left - 1];
                all.at[left / 2] = all.at[left - 1];
            }
        }
        return all;
    }
};

// A row's scores, a lane's share of them: sigmoids, and as a key what they are with the bias. All
// are given a value, so that no register is taken before.
struct RowScores {
    static constexpr uint32_t kOwn = kRouteExperts / 32;
    float score[kOwn];
    uint32_t key[kOwn];  // 0: chosen, or none

    __device__ RowScores(const float* logits, const float* bias, uint32_t experts) {
        const uint32_t lane = lane_now();
#pragma unroll
        for (uint32_t i = 0; i < kOwn; ++i) {
            const uint32_t e = i * 32 + lane;
            score[i] = e < experts ? __fdividef(1.0f, 1.0f + __expf(-logits[e])) : 0.0f;
            key[i] = e < experts ? ordered(score[i] + __ldg(bias + e)) : 0;
        }
    }
};

// A row's choices, by one warp: the top per_token with the bias, best first, the lower index
// winning a tie. `wanted` was cleared.
__device__ inline void choose_experts(RowScores& own, uint32_t experts, uint32_t per_token,
                                      bool normalize, float scale, uint32_t row, Routing& routing) {
    const uint32_t lane = lane_now();
    constexpr uint32_t kOwn = RowScores::kOwn;
    auto& [score, key] = own;
    float* const weight = routing.weight + row * per_token;
#pragma unroll 1
    for (uint32_t choice = 0; choice < per_token; ++choice) {
        const auto highest = Highest<kOwn>::of(key);
        const uint32_t best = __reduce_max_sync(~0u, highest.key[0]);
        const uint32_t best_own = highest.at[0] * 32 + lane;
        // Who has it: of several with equal scores the lowest expert.
        const uint32_t owners = __ballot_sync(~0u, highest.key[0] == best);
        bool mine = owners == 1u << lane;
        if ((owners & (owners - 1)) != 0)
            mine = best_own ==
                   __reduce_min_sync(~0u, highest.key[0] == best ? best_own : kRouteExperts);
        if (mine) {
            // Scores that are no numbers choose something, too.
            const uint32_t expert = min(best_own, experts - 1);
            routing.chosen[row * per_token + choice] = static_cast<uint16_t>(expert);
            atomicOr(&routing.wanted[expert / 32], 1u << expert % 32);
        }
#pragma unroll
        for (uint32_t i = 0; i < kOwn; ++i) {
            if (!mine || i != highest.at[0]) continue;
            key[i] = 0;
            weight[choice] = score[i];
        }
    }
    __syncwarp();
    float sum = 0;
#pragma unroll 1
    for (uint32_t choice = 0; choice < per_token; ++choice) sum += weight[choice];
    const float divisor = normalize ? sum + 1e-20f : 1.0f;
    const float chosen = lane < per_token ? weight[lane] : 0;
    __syncwarp();
    if (lane < per_token) weight[lane] = __fdividef(chosen, divisor) * scale;
}

// A row's part of the slots, by one warp, when every row has chosen; `pair` was set to kNoPair.
__device__ inline void fill_slots(uint32_t row, uint32_t per_token, Routing& routing) {
    const uint32_t lane = lane_now();
    const uint32_t bits = lane < kRouteExperts / 32 ? routing.wanted[lane] : 0;
    uint32_t before = __popc(bits);  // live experts up to here
#pragma unroll
    for (uint32_t offset = 1; offset < 32; offset *= 2) {
        const uint32_t other = __shfl_up_sync(~0u, before, offset);
        if (lane >= offset) before += other;
    }
    if (row == 0 && lane == 31) routing.live = before;
    before -= __popc(bits);
    const uint32_t pair = row * per_token + lane;
    const uint32_t expert = lane < per_token ? routing.chosen[pair] : 0;
    const uint32_t word_before = __shfl_sync(~0u, before, expert / 32);
    const uint32_t word = __shfl_sync(~0u, bits, expert / 32);
    const uint32_t slot = word_before + __popc(word & ((1u << expert % 32) - 1));
    uint32_t rank = 0;
#pragma unroll 4
    for (uint32_t c = 0; c < per_token; ++c) rank += __shfl_sync(~0u, expert, c) < expert;
    if (lane >= per_token) return;
    routing.expert[slot] = static_cast<uint16_t>(expert);  // whoever else writes, writes the same
    routing.pair[slot][row] = static_cast<uint8_t>(pair);
    routing.order[row * per_token + rank] = static_cast<uint8_t>(pair);
}

}  // namespace tessera::gpu
