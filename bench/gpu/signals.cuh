// How long a signal takes from one SM to another and back, and a barrier of all SMs: alone, and
// while weights stream through every SM.
#pragma once

#include "rounds.cuh"

namespace tessera::ground {

enum class Protocol : uint32_t {
    kPingPong,       // two SMs in turns: an atomic add, polls that acquire
    kPingPongStore,  // the same by stores
    kPingPongFence,  // the same by an atomic add, relaxed polls and a fence
    kOneToAll,       // one SM signals, all others answer on one counter
    kCounter,        // all SMs arrive on one counter and poll it: one thread of each
    kCounterFence,   // the same by relaxed polls and a fence
    kCounterRelay,   // the last to arrive tells all by another event
    kCounterBlock,   // kCounter with all consumers of each block before and after: a phase's end
    kFlagsBlock,     // the same by a flag of each SM that all others read: no atomics
};

constexpr uint32_t kEvents = 16;  // words from one event to the next: a line of 128 bytes each
constexpr uint32_t kFlags = kEvents * 4;

struct SignalTask {
    RoundsTask rounds;
    uint64_t* events;  // kFlags, then a flag of each block
    uint32_t partner;  // of block 0
};

__device__ inline void ping(uint64_t* event, uint64_t count, Protocol protocol) {
    if (protocol == Protocol::kPingPongStore) {
        gpu::publish(event, count);
    } else {
        gpu::signal(event);
    }
}

__device__ inline void wait_as(Protocol protocol, const uint64_t* event, uint64_t count,
                               gpu::Distress* board) {
    if (protocol == Protocol::kPingPongFence || protocol == Protocol::kCounterFence) {
        gpu::wait_then_fence(event, count, board);
    } else {
        gpu::wait(event, count, board);
    }
}

template <Protocol kProtocol>
constexpr bool kIsPingPong = kProtocol <= Protocol::kPingPongFence;

// What one thread of a block does in round r; `first` and `second` are events on lines of their
// own.
template <Protocol kProtocol>
__device__ void signal_round(const SignalTask& task, uint64_t r) {
    uint64_t* first = task.events;
    uint64_t* second = task.events + kEvents;
    gpu::Distress* board = task.rounds.board;
    const bool leads = blockIdx.x == 0;
    if constexpr (kIsPingPong<kProtocol>) {
        if (leads) ping(first, r, kProtocol);
        wait_as(kProtocol, leads ? second : first, r, board);
        if (!leads) ping(second, r, kProtocol);
    } else if constexpr (kProtocol == Protocol::kOneToAll) {
        if (leads) {
            gpu::publish(first, r);
            gpu::wait(second, r * (gridDim.x - 1), board);
        } else {
            gpu::wait(first, r, board);
            gpu::signal(second);
        }
    } else if constexpr (kProtocol == Protocol::kCounterRelay) {
        if (gpu::signal_and_count(first) == r * gridDim.x) {
            gpu::publish(second, r);
        } else {
            gpu::wait(second, r, board);
        }
    } else {
        gpu::signal(first);
        wait_as(kProtocol, first, r * gridDim.x, board);
    }
}

template <Protocol kProtocol>
__global__ __launch_bounds__(kBlockThreads,
                             1) void signal_rounds(const __grid_constant__ SignalTask task) {
    extern __shared__ __align__(128) std::byte shared[];
    const bool takes_part =
        !kIsPingPong<kProtocol> || blockIdx.x == 0 || blockIdx.x == task.partner;
    run_rounds(task.rounds, shared, takes_part, [&](uint64_t r) {
        if constexpr (kProtocol == Protocol::kFlagsBlock) {
            uint64_t* flags = task.events + kFlags;
            gpu::sync_threads(kConsumerBarrier, kConsumers);
            if (threadIdx.x == 0) gpu::publish(&flags[blockIdx.x], r);
            if (threadIdx.x < gridDim.x) gpu::wait(&flags[threadIdx.x], r, task.rounds.board);
            gpu::sync_threads(kConsumerBarrier, kConsumers);
        } else if constexpr (kProtocol == Protocol::kCounterBlock) {
            gpu::sync_threads(kConsumerBarrier, kConsumers);
            if (threadIdx.x == 0) signal_round<kProtocol>(task, r);
            gpu::sync_threads(kConsumerBarrier, kConsumers);
        } else {
            if (threadIdx.x == 0) signal_round<kProtocol>(task, r);
        }
    });
}

// What the events must hold once `rounds` are over: no signal is lost, none comes twice.
template <Protocol kProtocol>
void check_events(const std::vector<uint64_t>& events, uint64_t rounds, uint32_t blocks) {
    if constexpr (kProtocol == Protocol::kFlagsBlock) {
        for (uint32_t block = 0; block < blocks; ++block) {
            must_hold(events[kFlags + block] == rounds, "a flag has the wrong count");
        }
        return;
    }
    uint64_t first = rounds * blocks;
    uint64_t second = 0;
    if constexpr (kIsPingPong<kProtocol>) first = second = rounds;
    if constexpr (kProtocol == Protocol::kOneToAll) {
        first = rounds;
        second = rounds * (blocks - 1);
    }
    if constexpr (kProtocol == Protocol::kCounterRelay) second = rounds;
    must_hold(events[0] == first && events[kEvents] == second, "an event has the wrong count");
}

template <Protocol kProtocol>
void measure_protocol(const Card& card, const Reporter& reporter, const Rounds& rounds,
                      const Array<uint64_t>& events, const std::string& name) {
    constexpr uint32_t kRounds = 2048;
    must_hold(card.sms() <= kConsumers, "more SMs than threads that read flags");
    for (const uint32_t depth : {0, 8}) {
        const std::string full_name = name + (depth > 0 ? ", weights streaming" : "");
        reporter.attempt(full_name, [&] {
            const auto launch = [&](const RoundsTask& task, uint32_t repetition) {
                events.clear(card.stream());
                const uint32_t partner = 1 + repetition * (card.sms() - 2) / (kRepetitions - 1);
                card.launch(signal_rounds<kProtocol>,
                            {card.sms(), kBlockThreads, rounds_shared_bytes(kRounds, depth)},
                            SignalTask{task, events.data(), partner});
                card.finish();
                check_events<kProtocol>(events.host(), kWarmRounds + kRounds, card.sms());
            };
            const Timed timed = rounds.run(kRounds, depth, card.sms(), launch);
            reporter.say(Figure{full_name, "ns", spread(timed.round_ns), timed.more()});
        });
    }
}

inline void measure_signals(const Card& card, const Reporter& reporter) {
    const Weights weights(card);
    const Rounds rounds(card, weights);
    const Array<uint64_t> events(kFlags + kBlocksMax);
    const auto measure = [&]<Protocol kProtocol>(const std::string& name) {
        measure_protocol<kProtocol>(card, reporter, rounds, events, name);
    };
    measure.operator()<Protocol::kPingPong>("there and back, two SMs: add, acquire");
    measure.operator()<Protocol::kPingPongStore>("there and back, two SMs: store, acquire");
    measure.operator()<Protocol::kPingPongFence>("there and back, two SMs: add, polls + fence");
    measure.operator()<Protocol::kOneToAll>("one SM to all and back");
    measure.operator()<Protocol::kCounter>("barrier of all SMs: counter");
    measure.operator()<Protocol::kCounterFence>("barrier of all SMs: counter, polls + fence");
    measure.operator()<Protocol::kCounterRelay>("barrier of all SMs: counter, last one tells");
    measure.operator()<Protocol::kCounterBlock>("barrier of all SMs and blocks: counter");
    measure.operator()<Protocol::kFlagsBlock>("barrier of all SMs and blocks: flags");
}

}  // namespace tessera::ground
