// The emulated card itself: what its instructions do, and that it says what no card would do.
#include <array>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/gpu/primitives.cuh"
#include "tiles/matrix_gpu.cuh"

#include "gpu/emulated/card.h"

namespace tessera::gpu {
namespace {

template <typename... Parameters, typename... Arguments>
cudaError_t run(void (*kernel)(Parameters...), uint32_t blocks, uint32_t threads,
                uint32_t shared_bytes, Arguments... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared_bytes;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

__global__ void shuffle_all(uint32_t* out) {
    const uint32_t lane = threadIdx.x % 32;
    uint32_t* const own = out + (blockIdx.x * blockDim.x + threadIdx.x) * 6;
    own[0] = __shfl_sync(~0u, lane * 3, 7);
    own[1] = __shfl_xor_sync(~0u, lane, 5);
    own[2] = __shfl_up_sync(~0u, lane, 4);
    own[3] = __reduce_add_sync(~0u, lane);
    own[4] = __reduce_max_sync(~0u, lane ^ 21u);
    own[5] = __reduce_min_sync(~0u, lane + 9);
}

TEST(EmulatedCard, LanesMeet) {
    for (const uint64_t seed : {0, 1, 2}) {
        emulated::settings().seed = seed;
        std::vector<uint32_t> out(2 * 64 * 6);
        ASSERT_EQ(run(shuffle_all, 2, 64, 0, out.data()), cudaSuccess);
        for (uint32_t i = 0; i < 128; ++i) {
            const uint32_t lane = i % 32;
            const std::array<uint32_t, 6> expected = {
                21, lane ^ 5u, lane < 4 ? lane : lane - 4, 31 * 16, 31, 9};
            for (uint32_t of = 0; of < 6; ++of) EXPECT_EQ(out[i * 6 + of], expected[of]) << i;
        }
    }
    emulated::settings() = {};
}

// Rows of a by columns of b, of small whole numbers: exact.
__global__ void multiply(const float* a, const float* b, float* c) {
    const uint32_t g = threadIdx.x / 4, q = threadIdx.x % 4;
    const auto of_a = [&](uint32_t row, uint32_t column) {
        return pack_bf16(a[row * 16 + column], a[row * 16 + column + 1]);
    };
    const auto of_b = [&](uint32_t row) { return pack_bf16(b[row * 8 + g], b[(row + 1) * 8 + g]); };
    float sums[4] = {1, 1, 1, 1};
    mma_m16n8k16(sums, of_a(g, 2 * q), of_a(g + 8, 2 * q), of_a(g, 2 * q + 8),
                 of_a(g + 8, 2 * q + 8), of_b(2 * q), of_b(2 * q + 8));
    c[g * 8 + 2 * q] = sums[0];
    c[g * 8 + 2 * q + 1] = sums[1];
    c[(g + 8) * 8 + 2 * q] = sums[2];
    c[(g + 8) * 8 + 2 * q + 1] = sums[3];
}

TEST(EmulatedCard, MultipliesMatrices) {
    std::mt19937 random(3);
    std::vector<float> a(16 * 16), b(16 * 8), c(16 * 8);
    for (float& x : a) x = static_cast<float>(random() % 17) - 8;
    for (float& x : b) x = static_cast<float>(random() % 17) - 8;
    ASSERT_EQ(run(multiply, 1, 32, 0, a.data(), b.data(), c.data()), cudaSuccess);
    for (uint32_t row = 0; row < 16; ++row) {
        for (uint32_t column = 0; column < 8; ++column) {
            float sum = 1;
            for (uint32_t k = 0; k < 16; ++k) sum += a[row * 16 + k] * b[k * 8 + column];
            EXPECT_EQ(c[row * 8 + column], sum) << row << ", " << column;
        }
    }
}

TEST(EmulatedCard, RoundsToBf16) {
    EXPECT_EQ(to_bf16_bits(1.00390625f), 0x3f80u);  // half way: to the even
    EXPECT_EQ(to_bf16_bits(1.01171875f), 0x3f82u);
    EXPECT_EQ(to_bf16_bits(1.00390637f), 0x3f81u);
    EXPECT_EQ(to_bf16_bits(3.4e38f), 0x7f80u);
    EXPECT_EQ(multiply_bf16(0xbf80'4040u, 0x4000'4040u), 0xc000'4110u);
    EXPECT_EQ(multiply_add_bf16(0x3f80'3f81u, 0x3f81'3f81u, 0x3380'3b80u), 0x3f81'3f83u);
    EXPECT_EQ(__uint2float_rz(0x01ffffffu), 33554430.0f);
    EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0x7632), 0x77663322u);
    EXPECT_EQ(exp2_approx(-INFINITY), 0.0f);
}

// Pages of one word each, by a warp that loads and one that adds them up, over a ring of three.
__global__ void add_pages(const uint32_t* pages, uint32_t count, uint32_t* sum, Distress* board) {
    constexpr uint32_t kDepth = 3;
    auto* const ring = reinterpret_cast<uint32_t*>(dynamic_shared());
    auto* const full = reinterpret_cast<PageBarrier*>(dynamic_shared() + 64 * kDepth);
    auto* const empty = full + kDepth;
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < kDepth; ++i) {
            init(&full[i], 1);
            init(&empty[i], 32);
        }
        init_done();
        *sum = 0;
    }
    __syncthreads();
    for (uint32_t i = 0; i < count; ++i) {
        const uint32_t slot = i % kDepth, parity = i / kDepth % 2;
        if (threadIdx.x == 32) {
            wait(&empty[slot], parity ^ 1, Awaited::kEmptyPage, board);
            page_load(ring + slot * 16, pages + i * 4, 16, &full[slot]);
        } else if (threadIdx.x < 32) {
            wait(&full[slot], parity, Awaited::kFullPage, board);
            if (threadIdx.x == i % 32) *sum = *sum * 3 + ring[slot * 16];
            __syncwarp();
            arrive(&empty[slot]);
        }
    }
}

TEST(EmulatedCard, PagesComeInTurn) {
    constexpr uint32_t kPages = 50;
    void* memory = nullptr;
    ASSERT_EQ(cudaMalloc(&memory, kPages * 16), cudaSuccess);
    auto* const pages = static_cast<uint32_t*>(memory);
    uint32_t expected = 0;
    for (uint32_t i = 0; i < kPages; ++i) expected = expected * 3 + (pages[i * 4] = i * i);
    for (const uint64_t seed : {0, 1, 2, 3}) {
        emulated::settings().seed = seed;
        uint32_t sum = 0;
        std::array<Distress, 4> board{};
        ASSERT_EQ(run(add_pages, 1, 64, 512, pages, kPages, &sum, board.data()), cudaSuccess);
        EXPECT_EQ(sum, expected) << seed;
    }
    emulated::settings() = {};
    EXPECT_EQ(cudaFree(memory), cudaSuccess);
}

// ------------------------------------------------------------------ what a card would not do

// A launch that fails, and ends the program then: what failed stays failed, as on a card.
template <typename... Arguments>
void fail_by(Arguments... arguments) {
    if (run(arguments...) == cudaErrorLaunchFailure) std::abort();
}

__global__ void part_ways() {
    if (threadIdx.x < 5) {
        __syncwarp();
    } else {
        __shfl_sync(~0u, 1u, 0);
    }
}
__global__ void leave_one_behind() {
    if (threadIdx.x > 0) __syncthreads();
}
__global__ void wait_for_nothing(Distress* board) {
    auto* const full = reinterpret_cast<PageBarrier*>(dynamic_shared());
    if (threadIdx.x == 0) init(full, 1);
    __syncthreads();
    wait(full, 0, Awaited::kFullPage, board);
}
__global__ void copy_from_nowhere(const void* from) {
    auto* const full = reinterpret_cast<PageBarrier*>(dynamic_shared() + 64);
    init(full, 1);
    page_load(dynamic_shared(), from, 32, full);
}
__global__ void leave_a_copy(const void* from) {
    auto* const full = reinterpret_cast<PageBarrier*>(dynamic_shared() + 64);
    init(full, 1);
    page_load(dynamic_shared(), from, 16, full);
}
__global__ void write_beyond(uint32_t* memory) {
    memory[4] = 0;
}

TEST(EmulatedCardDeath, SaysWhatIsWrong) {
    std::array<Distress, 4> board{};
    void* memory = nullptr;
    ASSERT_EQ(cudaMalloc(&memory, 16), cudaSuccess);
    EXPECT_DEATH(fail_by(part_ways, 1, 32, 0), "lanes are at __syncwarp, and it is at __shfl_sync");
    EXPECT_DEATH(fail_by(leave_one_behind, 1, 64, 0), "all threads wait for each other");
    EXPECT_DEATH(fail_by(copy_from_nowhere, 1, 1, 128, memory), "outside of the card's memory");
    EXPECT_DEATH(fail_by(leave_a_copy, 1, 1, 128, memory), "ends before its bulk copies");
    EXPECT_DEATH(
        {
            run(write_beyond, 1, 1, 0, static_cast<uint32_t*>(memory));
            cudaFree(memory);
        },
        "beside an allocation was written");
    EXPECT_DEATH(
        {
            if (run(wait_for_nothing, 1, 32, 64, board.data()) == cudaErrorLaunchFailure &&
                board[0].awaited == Awaited::kFullPage)
                std::fprintf(stderr, "a note of thread %u", board[0].thread);
            std::abort();
        },
        "a note of thread 0");
    EXPECT_EQ(cudaFree(memory), cudaSuccess);
}

}  // namespace
}  // namespace tessera::gpu
