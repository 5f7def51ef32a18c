// Arenas: zeroed, aligned, given out once, and dear only where they are touched.
#include "base/arena.h"

#include <cstring>
#include <utility>

#include <gtest/gtest.h>
#include <sys/mman.h>

#include "base/error.h"

namespace tessera {
namespace {

bool all_are(const std::byte* at, uint64_t bytes, int value) {
    for (uint64_t i = 0; i < bytes; ++i)
        if (at[i] != std::byte{static_cast<uint8_t>(value)}) return false;
    return true;
}

TEST(Arena, IsZeroedAndBeginsOnALargePage) {
    for (const uint64_t bytes : {uint64_t{1}, uint64_t{64}, uint64_t{4095}, uint64_t{4097},
                                 uint64_t{2} << 20, (uint64_t{2} << 20) + 1}) {
        Arena arena(bytes);
        EXPECT_EQ(arena.bytes(), bytes);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(arena.data()) % (uintptr_t{2} << 20), 0u);
        EXPECT_TRUE(all_are(arena.data(), bytes, 0)) << bytes;
        std::memset(arena.data(), 1, bytes);  // all of it may be written
    }
}

TEST(Arena, TakesFollowEachOtherInWholeCacheLines) {
    Arena arena(1000);
    std::byte* const first = arena.take(1);
    std::byte* const second = arena.take(64);
    std::byte* const third = arena.take(65);
    std::byte* const nothing = arena.take(0);
    std::byte* const last = arena.take(1);
    EXPECT_EQ(first, arena.data());
    EXPECT_EQ(second, first + 64);
    EXPECT_EQ(third, second + 64);
    EXPECT_EQ(nothing, third + 128);
    EXPECT_EQ(last, nothing);
}

TEST(Arena, SaysWhatATakeUsesUp) {
    for (const auto& [bytes, taken] : {std::pair<uint64_t, uint64_t>{0, 0},
                                       {1, 64},
                                       {63, 64},
                                       {64, 64},
                                       {65, 128},
                                       {uint64_t{1} << 40, uint64_t{1} << 40}})
        EXPECT_EQ(Arena::taken(bytes), taken);
}

TEST(ArenaDeathTest, MoreThanItHasIsABug) {
    Arena arena(128);
    arena.take(64);
    arena.take(64);
    EXPECT_DEATH(arena.take(1), "broken fact");
    Arena small(100);  // no two whole cache lines
    EXPECT_DEATH(small.take(65), "broken fact");
    EXPECT_DEATH(small.take(UINT64_MAX), "broken fact");  // which taken() wraps to nothing
    Arena none;
    EXPECT_DEATH(none.take(1), "broken fact");
}

TEST(Arena, MovesWithWhatItHolds) {
    Arena from(256);
    std::byte* const at = from.take(64);
    std::memset(at, 7, 64);
    Arena to(std::move(from));
    EXPECT_EQ(to.data(), at);
    EXPECT_EQ(to.take(64), at + 64) << "what was taken stays taken";
    Arena other(64);
    std::memset(other.take(64), 9, 64);
    other = std::move(to);
    EXPECT_EQ(other.data(), at);
    EXPECT_TRUE(all_are(at, 64, 7));
    EXPECT_EQ(other.take(128), at + 128);
}

TEST(Arena, OfNothingIsEmpty) {
    Arena arena(0);
    EXPECT_EQ(arena.data(), nullptr);
    EXPECT_EQ(arena.bytes(), 0u);
    EXPECT_EQ(arena.take(0), nullptr);
}

// 64 GiB, of which the first and the last page are touched. The pages between cost nothing.
TEST(Arena, CostsWhatIsTouched) {
    constexpr uint64_t kBytes = uint64_t{64} << 30, kPage = 4096;
    Arena arena(kBytes);
    arena.data()[0] = std::byte{1};
    arena.data()[kBytes - 1] = std::byte{2};
    unsigned char resident[64];
    constexpr uint64_t kMiddle = kBytes / 2;
    ASSERT_EQ(mincore(arena.data() + kMiddle, sizeof resident * kPage, resident), 0);
    for (const unsigned char page : resident) EXPECT_EQ(page & 1, 0);
    EXPECT_EQ(arena.data()[kMiddle], std::byte{0});
}

TEST(Arena, MoreThanTheAddressSpaceIsAnError) {
    constexpr uint64_t kLargest = UINT64_MAX;
    for (const uint64_t bytes : {uint64_t{1} << 60, (uint64_t{1} << 62) + 1, kLargest - (4 << 20),
                                 kLargest - (2 << 20), kLargest - 4095, kLargest}) {
        try {
            Arena arena(bytes);
            FAIL() << "an arena of " << bytes << " bytes";
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find("of memory cannot be had"), std::string::npos)
                << error.what();
        }
    }
}

}  // namespace
}  // namespace tessera
