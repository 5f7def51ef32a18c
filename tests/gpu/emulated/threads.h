// A kernel's threads on an emulated card: each is a fiber of one thread of the host, and has its
// turn until it waits. What a thread can ask for is here; how threads come to their turns is
// threads.cpp's matter. Nothing here knows what a kernel computes.
//
// Turns come in a fixed order, or in one that a seed makes, so that the same interleaving can be
// had again. Time stands still while anything moves: a kernel's watchdog ends what waits for
// nothing, not what a slow host is late with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace emulated {

inline constexpr uint32_t kLanes = 32;

struct Index {
    uint32_t x = 0, y = 0, z = 0;
};

struct Launch {
    std::function<void()> thread;  // what each of them runs
    uint32_t blocks = 1, threads = 1;
    uint32_t shared_bytes = 0;
    bool cooperative = false;
};

// One launch, from its first thread's turn to its last's.
class Grid {
  public:
    // At most `resident` blocks at once. `seed` 0: in order.
    Grid(Launch launch, uint32_t resident, uint64_t seed);
    ~Grid();

    // So many turns, or fewer if it is over by then.
    void advance(uint64_t turns);
    bool over() const;
    // A trap, or something that no card would do: said on stderr.
    bool failed() const;

    class State;

  private:
    std::unique_ptr<State> state_;
};

// ---- For the thread whose turn it is ------------------------------------------------------------

// Where the lanes of a warp wait for each other. All of them have to come, and to the same.
enum class Meeting : uint8_t { sync, shuffle, shuffle_xor, shuffle_up, add, lowest, highest, mma };

// What a lane gets of what all lanes have brought.
uint64_t meet(Meeting meeting, uint32_t mask, uint64_t value = 0, uint32_t argument = 0);
// Fragments as the instruction has them.
void meet_mma(float (&c)[4], const uint32_t (&operands)[6]);

// A barrier of the block, among so many of its threads; 0 is everybody's.
void wait_at_barrier(uint32_t id, uint32_t threads);
void wait_at_barrier_of_all();

// Gives its turn away, and has no other until something has been told: a thread that polls.
void poll();
// Something that another may poll for has changed.
void tell_block();
void tell_all();

uint64_t now_ns();
[[noreturn]] void trap();

// The block's, all bits set at its start: floats that are no numbers.
std::byte* shared_memory();
void* static_shared(uint32_t bytes, const void* key);

// Barriers of pages: a phase is over when so many have arrived and the bytes expected have come.
void init_page_barrier(uint64_t* barrier, uint32_t arrivals);
void arrive_at_page_barrier(uint64_t* barrier, uint32_t bytes);
bool page_barrier_finished(uint64_t* barrier, uint32_t parity);
// Takes place some turns later, not in the order in which copies were asked for.
void copy_to_page(void* page, const void* from, uint32_t bytes, uint64_t* barrier);

}  // namespace emulated

extern emulated::Index threadIdx, blockIdx, blockDim, gridDim;
