#include "runtime/gpu/rounds_machine.h"

#include <atomic>

#include "base/check.h"
#include "runtime/kv_cache.h"
#include "runtime/signals.h"

namespace tessera::gpu {

static_assert(kRoundsMax >= kStepRowsMax);  // tokens of a run at most

RoundsMachine::RoundsMachine(const Walker& target, const Walker* drafter, cudaStream_t stream)
    : target_(target), stream_(stream), rounds_(kRoundsMax), made_(1), one_(1) {
    *one_.data() = 1;
    const uint32_t available = find_card().shared_bytes - rounds_static_bytes();
    const SharedNeeds needs =
        drafter != nullptr ? target.needs().with(drafter->needs()) : target.needs();
    const Shared shared = lay_out(needs, available);
    check_device(prepare_rounds(available), "loading the kernel of rounds");

    RoundsLaunch& l = launch_;
    l.blocks = target.blocks();
    l.layers = static_cast<uint32_t>(target.cache().layers.size());
    const uint64_t places = uint64_t{kRowsMax} * l.blocks;
    memory_ = DeviceMemory(8 * (8 * places + 3));  // at most eight bytes each
    memory_.clear();
    uint64_t* next = reinterpret_cast<uint64_t*>(memory_.data());
    const auto take = [&]<typename T>(T*& pointer, uint64_t count) {
        pointer = reinterpret_cast<T*>(next);
        next += count;
    };
    uint64_t* barrier = nullptr;
    take(barrier, 1);
    take(l.stop, 1);
    take(l.stopping, 1);
    take(l.tops, places);
    for (uint32_t turn = 0; turn < 2; ++turn) {
        take(l.bests[turn], places);
        take(l.above[turn], places);
        take(l.all[turn], places);
    }
    take(l.sums, places);
    l.rounds = rounds_.data();
    l.made = made_.data();

    // Both walk with one barrier and one board of who waits for what.
    const auto turn = [&](const Walker& walker) {
        Turn one{walker.network(), walker.device_phases(),
                 static_cast<uint32_t>(walker.phases().size())};
        one.network.shared = shared;
        one.network.barrier = barrier;
        one.network.stamps = nullptr;
        one.network.distress = target.network().distress;
        return one;
    };
    l.turns[kTarget] = turn(target);
    if (drafter != nullptr) l.turns[kDrafter] = turn(*drafter);
}

void RoundsMachine::start(const RoundsInput& input) {
    CHECK(!running_ && input.ask.tokens_max <= kRoundsMax);
    CHECK(input.ask.drafts == 0 || launch_.turns[kDrafter].phases != nullptr);
    launch_.input = input;
    // What was asked of the run before has come by then.
    check_device(cudaStreamSynchronize(beside_.get()), "asking for an end");
    *made_.data() = taken_ = 0;
    const auto clear = [&](const void* what, size_t bytes) {
        check_device(cudaMemsetAsync(const_cast<void*>(what), 0, bytes, stream_), "clearing");
    };
    clear(launch_.turns[kTarget].network.barrier, sizeof(uint64_t));
    clear(launch_.stop, sizeof(uint32_t));
    check_device(launch_rounds(launch_, stream_), "launching rounds");
    running_ = true;
    last_ = false;
}

std::optional<Round> RoundsMachine::next() {
    CHECK(running_);
    constexpr uint32_t kPollsBetweenLooks = 4096;
    std::atomic_ref<uint64_t> made(*made_.data());
    for (uint32_t polls = 1; !last_; ++polls) {
        if (made.load(std::memory_order_acquire) > taken_) {
            const Round round = rounds_.data()[taken_++];
            last_ = round.last != 0;
            return round;
        }
        // A kernel that failed tells nobody: finish() says what it waited for, and aborts.
        if (polls % kPollsBetweenLooks == 0 && cudaStreamQuery(stream_) != cudaErrorNotReady &&
            made.load(std::memory_order_acquire) == taken_) {
            target_.finish();
            CHECK(made.load(std::memory_order_acquire) > taken_);
        }
        pause_briefly();
    }
    target_.finish();
    running_ = false;
    return std::nullopt;
}

void RoundsMachine::stop() {
    if (!running_ || last_) return;
    check_device(cudaMemcpyAsync(const_cast<uint32_t*>(launch_.stop), one_.data(), sizeof(uint32_t),
                                 cudaMemcpyHostToDevice, beside_.get()),
                 "asking for an end");
}

}  // namespace tessera::gpu
