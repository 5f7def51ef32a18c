#include "gpu/emulated/threads.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "gpu/emulated/fiber.h"
#include "gpu/emulated/memory.h"
#include "gpu/emulated/product.h"

emulated::Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {
namespace {

constexpr uint32_t kSharedAlignment = 1024;
constexpr uint32_t kStaticBytes = 4096;
constexpr uint32_t kBarriers = 16;
constexpr uint64_t kTurnNs = 100;          // of all warps, while anything moves
constexpr uint64_t kStillNs = 20'000'000;  // when nothing does

enum class Doing : uint8_t { fresh, ready, meeting, at_barrier, polling, over };

struct Warp;

struct Thread {
    Warp* warp = nullptr;
    Fiber* fiber = nullptr;
    uint32_t index = 0;
    Doing doing = Doing::fresh;
    uint32_t barrier = 0;
    uint64_t told = 0;  // how much was when it polled
    // Of a meeting: what it brings and gets.
    uint64_t value = 0, result = 0;
    uint32_t argument = 0;
    Fragments mma;
};

struct Block;

struct Warp {
    Block* block = nullptr;
    Thread* lanes = nullptr;  // kLanes
    uint32_t count = 0, arrived = 0;
    Meeting meeting{};
    uint64_t held_until = 0;  // round
};

struct BlockBarrier {
    uint32_t arrived = 0, threads = 0;
};

struct Block {
    Block(uint32_t number, const Launch& launch)
        : index(number),
          left(launch.threads),
          threads(launch.threads),
          warps((launch.threads + kLanes - 1) / kLanes),
          shared_bytes(launch.shared_bytes),
          shared(allocate(launch.shared_bytes + kStaticBytes)) {
        std::memset(shared.get(), 0xff, launch.shared_bytes + kStaticBytes);
        for (uint32_t i = 0; i < threads.size(); ++i) {
            threads[i].index = i;
            threads[i].warp = &warps[i / kLanes];
            ++warps[i / kLanes].count;
        }
        for (uint32_t i = 0; i < warps.size(); ++i) {
            warps[i].block = this;
            warps[i].lanes = &threads[i * kLanes];
        }
    }

    bool has(const void* at, uint64_t bytes) const {
        const auto* const begin = static_cast<const std::byte*>(at);
        return begin >= shared.get() && begin + bytes <= shared.get() + shared_bytes + kStaticBytes;
    }

    struct Freed {
        void operator()(std::byte* memory) const { std::free(memory); }
    };
    static std::unique_ptr<std::byte, Freed> allocate(uint32_t bytes) {
        const uint32_t rounded =
            (bytes + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
        return std::unique_ptr<std::byte, Freed>(
            static_cast<std::byte*>(std::aligned_alloc(kSharedAlignment, rounded)));
    }

    uint32_t index, left;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    uint32_t shared_bytes;
    std::unique_ptr<std::byte, Freed> shared;
    const void* static_key = nullptr;
    std::array<BlockBarrier, kBarriers> barriers;
    uint64_t told = 0;
};

struct Copy {
    Block* block;
    void* to;
    const void* from;
    uint32_t bytes;
    uint64_t* barrier;
    uint64_t due;  // round of turns
};

// In shared memory. The magic tells what init has made from anything else.
struct PageBarrierBits {
    static constexpr uint32_t kMagic = 0x5b, kArrivalsMax = (1 << 12) - 1;

    int32_t bytes;
    uint32_t pending : 12, arrivals : 12, parity : 1, magic : 7;
};
static_assert(sizeof(PageBarrierBits) == sizeof(uint64_t));

const char* name_of(Meeting meeting) {
    constexpr const char* kNames[] = {
        "__syncwarp",        "__shfl_sync",       "__shfl_xor_sync",   "__shfl_up",
        "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync", "mma"};
    return kNames[static_cast<uint32_t>(meeting)];
}

}  // namespace

class Grid::State {
  public:
    State(Launch launch, uint32_t resident, uint64_t seed)
        : launch_(std::move(launch)), resident_(resident), seed_(seed), random_(seed) {
        fill();
    }
    ~State() {
        // What is under way is unwound with its fiber; what has ended lends its fiber to the next.
        for (const auto& block : blocks_)
            for (const Thread& thread : block->threads)
                if (thread.fiber != nullptr)
                    std::erase_if(fibers(),
                                  [&](const auto& fiber) { return fiber.get() == thread.fiber; });
    }

    bool over() const { return failed_ || blocks_.empty(); }
    bool failed() const { return failed_; }

    void advance(uint64_t turns) {
        active_ = this;
        for (const uint64_t end = turns_ + turns; turns_ < end && !over();) round();
        active_ = nullptr;
    }

    static State& active() { return *active_; }
    Thread& current() { return *current_; }
    Block& block() { return *current_->warp->block; }

    void wait(Doing doing) {
        Thread& thread = *current_;
        thread.doing = doing;
        count_turn(doing != Doing::polling);
        if (Thread* const next = failed_ ? nullptr : next_lane()) {
            prepare(*next);
            thread.fiber->pass_to(*next->fiber);
        } else {
            thread.fiber->leave();
        }
    }

    // The thread has no other turn.
    [[noreturn]] void fail(const std::string& why) {
        if (!why.empty())
            fmt::print(stderr, "emulated card: block {}, thread {}: {}\n", block().index,
                       current_->index, why);
        failed_ = true;
        while (true) wait(Doing::over);
    }

    uint64_t meet(Meeting meeting, uint32_t mask) {
        Thread& thread = *current_;
        Warp& warp = *thread.warp;
        if (mask != ~0u) fail("a mask that is not of all lanes");
        if (warp.arrived == 0) warp.meeting = meeting;
        if (warp.meeting != meeting)
            fail(fmt::format("its warp's lanes are at {}, and it is at {}", name_of(warp.meeting),
                             name_of(meeting)));
        if (warp.count != kLanes) fail(fmt::format("{} without all lanes", name_of(meeting)));
        if (++warp.arrived < kLanes) {
            wait(Doing::meeting);
            return thread.result;
        }
        conclude(warp);
        warp.arrived = 0;
        for (uint32_t lane = 0; lane < kLanes; ++lane) warp.lanes[lane].doing = Doing::ready;
        return thread.result;
    }

    void barrier(uint32_t id, uint32_t threads) {
        Block& own = block();
        if (id >= kBarriers) fail("a barrier beyond the last");
        BlockBarrier& barrier = own.barriers[id];
        if (barrier.arrived == 0) barrier.threads = threads;
        if (barrier.threads != threads)
            fail(fmt::format("barrier {} among {} threads and among {}", id, barrier.threads,
                             threads));
        if (++barrier.arrived < threads) {
            current_->barrier = id;
            return wait(Doing::at_barrier);
        }
        barrier.arrived = 0;
        for (Thread& thread : own.threads)
            if (thread.doing == Doing::at_barrier && thread.barrier == id)
                thread.doing = Doing::ready;
    }

    uint64_t told(const Block& of) const { return told_all_ + of.told; }
    void poll() {
        current_->told = told(block());
        wait(Doing::polling);
    }
    void tell_all() { ++told_all_; }

    uint64_t now() const { return now_ns_; }

    void finish_phase(PageBarrierBits& bits) {
        if (bits.pending > 0 || bits.bytes != 0) return;
        bits.parity ^= 1;
        bits.pending = bits.arrivals;
    }
    PageBarrierBits load(const uint64_t* barrier) {
        PageBarrierBits bits;
        std::memcpy(&bits, barrier, sizeof(bits));
        if (bits.magic != PageBarrierBits::kMagic) fail("a barrier of pages that none has made");
        return bits;
    }

    void copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
        load(barrier);
        const auto aligned = [](const void* at) {
            return reinterpret_cast<uintptr_t>(at) % 16 == 0;
        };
        if (!aligned(to) || !aligned(from) || bytes % 16 != 0)
            fail("a bulk copy that is not of whole 16 bytes");
        if (!block().has(to, bytes)) fail("a bulk copy to outside of the block's shared memory");
        if (!is_device_memory(from, bytes)) fail("a bulk copy from outside of the card's memory");
        const uint64_t delay = seed_ == 0 ? 1 : 1 + random_() % 12;
        copies_.push_back({&block(), to, from, bytes, barrier, rounds_ + delay});
    }

  private:
    static std::vector<std::unique_ptr<Fiber>>& fibers() {
        static auto& all = *new std::vector<std::unique_ptr<Fiber>>;
        return all;
    }
    static std::vector<Fiber*>& idle() {
        static auto& all = *new std::vector<Fiber*>;
        return all;
    }

    // Blocks in the places of those that are over.
    void fill() {
        std::erase_if(blocks_, [](const auto& block) { return block->left == 0; });
        while (blocks_.size() < resident_ && next_block_ < launch_.blocks)
            blocks_.push_back(std::make_unique<Block>(next_block_++, launch_));
        warps_.clear();
        for (const auto& block : blocks_)
            for (Warp& warp : block->warps) warps_.push_back(&warp);
    }

    // A turn for every warp.
    void round() {
        ++rounds_;
        moved_ = land();
        if (seed_ != 0) mix();
        bool held = false;
        for (Warp* warp : warps_) {
            if (warp->held_until > rounds_) {
                held = true;
                continue;
            }
            run(*warp);
            if (failed_) return;
        }
        now_ns_ += kTurnNs;
        if (held && !moved_)
            for (Warp* warp : warps_) warp->held_until = 0;
        still_ = !moved_ && !held && copies_.empty();
        if (still_) {
            now_ns_ += kStillNs;
            if (!anyone(Doing::polling) && !ended_) report();
        }
        if (ended_) {
            ended_ = false;
            fill();
        }
    }

    // Another order of warps, and now and then a warp or a block that is late by many rounds: what
    // is not waited for is found by who comes long before it.
    void mix() {
        std::shuffle(warps_.begin(), warps_.end(), random_);
        const uint64_t chance = random_() % 32;
        if (chance < 8) warps_[0]->held_until = rounds_ + random_() % 100;
        if (chance > 0) return;
        const Block* const late = warps_[0]->block;
        const uint64_t until = rounds_ + random_() % 400;
        for (Warp* warp : warps_)
            if (warp->block == late) warp->held_until = until;
    }

    bool land() {
        bool any = false;
        for (size_t i = 0; i < copies_.size();) {
            if (copies_[i].due > rounds_) {
                ++i;
                continue;
            }
            const Copy copy = copies_[i];
            copies_[i] = copies_.back();
            copies_.pop_back();
            std::memcpy(copy.to, copy.from, copy.bytes);
            PageBarrierBits bits;
            std::memcpy(&bits, copy.barrier, sizeof(bits));
            bits.bytes -= static_cast<int32_t>(copy.bytes);
            finish_phase(bits);
            std::memcpy(copy.barrier, &bits, sizeof(bits));
            ++copy.block->told;
            any = true;
        }
        return any;
    }

    bool can_go(const Thread& thread) const {
        switch (thread.doing) {
            case Doing::fresh:
            case Doing::ready:
                return true;
            case Doing::polling:
                return still_ || thread.told != told(*thread.warp->block);
            default:
                return false;
        }
    }

    // Its lanes, until all of them wait; of a seed, or until chance has it.
    void run(Warp& warp) {
        do {
            sweep_ = {&warp, static_cast<uint32_t>(seed_ == 0 ? 0 : random_() % kLanes)};
            while (Thread* const thread = next_lane()) {
                prepare(*thread);
                thread->fiber->enter();
                if (current_->fiber->ended()) end(*current_);
                if (failed_) return;
            }
            moved_ |= sweep_.moved;
        } while (sweep_.moved && (seed_ == 0 || random_() % 8 != 0));
    }

    Thread* next_lane() {
        while (sweep_.next < sweep_.warp->count) {
            Thread& thread =
                sweep_.warp->lanes[(sweep_.first + sweep_.next++) % sweep_.warp->count];
            if (can_go(thread)) return &thread;
        }
        return nullptr;
    }

    void count_turn(bool moved) {
        sweep_.moved |= moved;
        ++turns_;
    }

    // It is the thread's turn.
    void prepare(Thread& thread) {
        if (thread.doing == Doing::fresh) {
            if (idle().empty()) {
                fibers().push_back(std::make_unique<Fiber>(body()));
                idle().push_back(fibers().back().get());
            }
            thread.fiber = idle().back();
            idle().pop_back();
        }
        thread.doing = Doing::ready;
        const Block& block = *thread.warp->block;
        threadIdx = {thread.index, 0, 0};
        blockIdx = {block.index, 0, 0};
        blockDim = {launch_.threads, 1, 1};
        gridDim = {launch_.blocks, 1, 1};
        current_ = &thread;
        body() = &launch_.thread;
    }

    void end(Thread& thread) {
        count_turn(true);
        idle().push_back(std::exchange(thread.fiber, nullptr));
        thread.doing = Doing::over;
        if (thread.warp->arrived > 0) {
            fmt::print(stderr, "emulated card: block {}, thread {}: ends while its warp is at {}\n",
                       thread.warp->block->index, thread.index, name_of(thread.warp->meeting));
            failed_ = true;
        }
        Block& block = *thread.warp->block;
        if (--block.left > 0) return;
        ended_ = true;
        if (std::ranges::any_of(copies_, [&](const Copy& copy) { return copy.block == &block; })) {
            fmt::print(stderr, "emulated card: block {} ends before its bulk copies\n",
                       block.index);
            failed_ = true;
        }
    }

    bool anyone(Doing doing) const {
        for (const auto& block : blocks_)
            for (const Thread& thread : block->threads)
                if (thread.doing == doing) return true;
        return false;
    }

    // Nobody can go on, ever: whole warps by what they wait for.
    void report() {
        fmt::print(stderr, "emulated card: all threads wait for each other\n");
        for (const auto& block : blocks_) {
            for (const Warp& warp : block->warps) {
                uint32_t meeting = 0, at_barrier = 0, over = 0;
                for (uint32_t lane = 0; lane < warp.count; ++lane) {
                    meeting += warp.lanes[lane].doing == Doing::meeting;
                    at_barrier += warp.lanes[lane].doing == Doing::at_barrier;
                    over += warp.lanes[lane].doing == Doing::over;
                }
                fmt::print(stderr,
                           "  block {}, warp {}: {} lanes at {}, {} at a barrier, {} over\n",
                           block->index, &warp - block->warps.data(), meeting,
                           name_of(warp.meeting), at_barrier, over);
            }
        }
        failed_ = true;
    }

    static void conclude(Warp& warp) {
        Thread* const lanes = warp.lanes;
        switch (warp.meeting) {
            case Meeting::sync:
                return;
            case Meeting::mma: {
                Fragments* all[kLanes];
                for (uint32_t i = 0; i < kLanes; ++i) all[i] = &lanes[i].mma;
                return multiply(all);
            }
            case Meeting::shuffle:
                for (uint32_t i = 0; i < kLanes; ++i)
                    lanes[i].result = lanes[lanes[i].argument % kLanes].value;
                return;
            case Meeting::shuffle_xor:
                for (uint32_t i = 0; i < kLanes; ++i)
                    lanes[i].result = lanes[(i ^ lanes[i].argument) % kLanes].value;
                return;
            case Meeting::shuffle_up:
                for (uint32_t i = 0; i < kLanes; ++i)
                    lanes[i].result =
                        lanes[i < lanes[i].argument ? i : i - lanes[i].argument].value;
                return;
            case Meeting::add:
            case Meeting::lowest:
            case Meeting::highest: {
                auto all = static_cast<uint32_t>(lanes[0].value);
                for (uint32_t i = 1; i < kLanes; ++i) {
                    const auto one = static_cast<uint32_t>(lanes[i].value);
                    all = warp.meeting == Meeting::add      ? all + one
                          : warp.meeting == Meeting::lowest ? std::min(all, one)
                                                            : std::max(all, one);
                }
                for (uint32_t i = 0; i < kLanes; ++i) lanes[i].result = all;
                return;
            }
        }
    }

    static const std::function<void()>*& body() {
        static const std::function<void()>* one = nullptr;
        return one;
    }

    inline static State* active_ = nullptr;

    Launch launch_;
    uint32_t resident_, next_block_ = 0;
    uint64_t seed_;
    std::mt19937_64 random_;
    std::vector<std::unique_ptr<Block>> blocks_;
    std::vector<Warp*> warps_;
    std::vector<Copy> copies_;
    // Through the lanes of a warp that can go: one passes the turn to the next.
    struct Sweep {
        Warp* warp = nullptr;
        uint32_t first = 0, next = 0;
        bool moved = false;
    } sweep_;
    Thread* current_ = nullptr;
    uint64_t told_all_ = 0, turns_ = 0, rounds_ = 0, now_ns_ = 1;
    bool failed_ = false, moved_ = false, still_ = false, ended_ = false;
};

Grid::Grid(Launch launch, uint32_t resident, uint64_t seed)
    : state_(std::make_unique<State>(std::move(launch), resident, seed)) {}
Grid::~Grid() = default;

void Grid::advance(uint64_t turns) {
    state_->advance(turns);
}
bool Grid::over() const {
    return state_->over();
}
bool Grid::failed() const {
    return state_->failed();
}

// ---- For the thread whose turn it is ------------------------------------------------------------

namespace {

Grid::State& grid() {
    return Grid::State::active();
}

}  // namespace

uint64_t meet(Meeting meeting, uint32_t mask, uint64_t value, uint32_t argument) {
    Thread& thread = grid().current();
    thread.value = value;
    thread.argument = argument;
    return grid().meet(meeting, mask);
}

void meet_mma(float (&c)[4], const uint32_t (&operands)[6]) {
    Thread& thread = grid().current();
    std::copy_n(operands, 6, thread.mma.operands);
    std::copy_n(c, 4, thread.mma.sums);
    grid().meet(Meeting::mma, ~0u);
    std::copy_n(thread.mma.sums, 4, c);
}

void wait_at_barrier(uint32_t id, uint32_t threads) {
    grid().barrier(id, threads);
}
void wait_at_barrier_of_all() {
    grid().barrier(0, blockDim.x);
}

void poll() {
    grid().poll();
}
void tell_block() {
    ++grid().block().told;
}
void tell_all() {
    grid().tell_all();
}

uint64_t now_ns() {
    return grid().now();
}
void trap() {
    grid().fail("");
}

std::byte* shared_memory() {
    return grid().block().shared.get();
}

void* static_shared(uint32_t bytes, const void* key) {
    Block& block = grid().block();
    if (block.static_key == nullptr) block.static_key = key;
    if (block.static_key != key || bytes + 128 > kStaticBytes)
        grid().fail("one variable of shared memory is all that a kernel has here");
    return block.shared.get() + (block.shared_bytes + 127) / 128 * 128;
}

void init_page_barrier(uint64_t* barrier, uint32_t arrivals) {
    if (!grid().block().has(barrier, sizeof(*barrier)) || arrivals == 0 ||
        arrivals > PageBarrierBits::kArrivalsMax)
        grid().fail("a barrier of pages outside of shared memory, or of no arrivals");
    constexpr uint32_t kMost = PageBarrierBits::kArrivalsMax;
    const PageBarrierBits bits{0, arrivals & kMost, arrivals & kMost, 0, PageBarrierBits::kMagic};
    std::memcpy(barrier, &bits, sizeof(bits));
}

void arrive_at_page_barrier(uint64_t* barrier, uint32_t bytes) {
    PageBarrierBits bits = grid().load(barrier);
    bits.bytes += static_cast<int32_t>(bytes);
    if (bits.pending == 0) grid().fail("more arrivals at a barrier of pages than it waits for");
    --bits.pending;
    grid().finish_phase(bits);
    std::memcpy(barrier, &bits, sizeof(bits));
    tell_block();
}

bool page_barrier_finished(uint64_t* barrier, uint32_t parity) {
    return grid().load(barrier).parity != parity;
}

void copy_to_page(void* page, const void* from, uint32_t bytes, uint64_t* barrier) {
    grid().copy(page, from, bytes, barrier);
}

}  // namespace emulated
