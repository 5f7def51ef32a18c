// The kernel that writes by itself: a block is drafted, verified, and what stands is kept, round
// after round in one launch, one block an SM. Each pass is the phases that walk.cuh walks; between
// passes all blocks choose tokens together, and each knows then what the next pass reads. The host
// is told after every round and asked for nothing.
#pragma once

#include "runtime/gpu/choose.cuh"
#include "runtime/gpu/consumers.cuh"
#include "runtime/gpu/loader.cuh"
#include "runtime/gpu/rounds.h"

namespace tessera::gpu {

// What a block knows of the text, in its shared memory: the same in every block.
struct Told {
    Standing at;
    Round round;
    uint32_t rows[kRowsMax];  // what the model reads: the anchor, then drafts
    uint32_t drafts;          // of this round's block
    uint32_t goes_on;
    bool open[kRowsMax];  // rows whose choice the masks may still refuse
    uint32_t made;        // rounds
    uint64_t began;       // ns
    // Where the consumers stand in the ring, and with the adders.
    Place place;
    uint32_t turns;
    PageBarrier decided;  // full when it is known whether another round follows
};

// A block as a network's pass has it.
__device__ inline Block block_of(const Turn& turn, std::byte* memory) {
    const Shared& shared = turn.network.shared;
    return {{turn.network, memory},
            turn.phases,
            0,
            Ring::at(memory + shared.ring, shared.pages, kPageBytes)};
}

// The consumers' side. Between passes it lives in shared memory: within one, registers are scarce.
template <typename Faults>
class Writer {
  public:
    __device__ Writer(const RoundsLaunch& launch, std::byte* memory, Told& told)
        : l_(launch), memory_(memory), told_(told) {}

    // One loop for both networks: two copies of a pass had twice the code, more than an SM keeps of
    // it, and fewer registers.
    __device__ __forceinline__ void run() {
        uint32_t which = told_.drafts > 0 ? kDrafter : kTarget;
#pragma unroll 1
        while (true) {
            const bool drafts = which == kDrafter;
            if (first_thread()) drafts ? begin_draft() : begin_verify();
            const Turn& turn = l_.turns[which];
            pass(turn);
            // One block looks and says what it saw, so that all see the same.
            if (!drafts && blockIdx.x == 0 && first_thread())
                *l_.stopping = *static_cast<const volatile uint32_t*>(l_.stop);
            // Drafts begin with the block's second row.
            const Network& net = turn.network;
            choose(ballot(net, net.logits + (drafts ? net.vocab : 0),
                          drafts ? told_.drafts : told_.round.verified + 1),
                   drafts ? told_.rows + 1 : told_.round.tokens,
                   drafts ? told_.round.confidence : nullptr);
            if (drafts) {
                if (first_thread()) told_.round.draft_ns = lap();
                which = kTarget;
                continue;
            }
            if (blockIdx.x == 0 && threadIdx.x < 32) count_experts();
            if (first_thread()) conclude();
            sync_consumers();
            if (!told_.goes_on) return;
            which = told_.drafts > 0 ? kDrafter : kTarget;
        }
    }

  private:
    __device__ bool first_thread() const {
        return threadIdx.x == 0;
    }
    __device__ Distress* distress() const {
        return static_cast<Distress*>(l_.turns[kTarget].network.distress);
    }
    __device__ Step& step() const {
        return View{l_.turns[kTarget].network, memory_}.step();
    }

    // All phases of a step that the first thread has written.
    __device__ __forceinline__ void pass(const Turn& turn) {
        sync_consumers();
        Block block = block_of(turn, memory_);
        block.place = told_.place;
        block.turns = told_.turns;
        Consumers<Faults>(block).run(0, turn.count);
        if (!first_thread()) return;
        told_.place = block.place;
        told_.turns = block.turns;
    }

    // All blocks have done what came before.
    __device__ void all_blocks() {
        sync_consumers();
        if (first_thread()) {
            const View view{l_.turns[kTarget].network, memory_};
            const uint64_t all = view.counts().passed += gridDim.x;
            signal(l_.turns[kTarget].network.barrier);
            wait(l_.turns[kTarget].network.barrier, all, distress());
        }
        sync_consumers();
    }

    __device__ uint16_t* taps_at(uint32_t position) const {
        const RoundsInput& in = l_.input;
        return in.taps + uint64_t{position % in.taps_ring} * in.tap_columns;
    }

    // By the first thread, as what follows.
    __device__ void begin_draft() {
        const Standing& at = told_.at;
        Step& step = this->step();
        step.rows = l_.input.block;
        step.logits_from = 1;
        step.runs = 1;
        step.run[0] = {0, step.rows, at.length, l_.input.seen_from, l_.input.draft_cache};
        for (uint32_t i = 0; i < kRowsMax; ++i) {
            step.tokens[i] = at.anchor;
            step.positions[i] = at.length + i;
            step.taps[i] = nullptr;
        }
        step.context_rows = at.length - at.drafted;
        step.context_position = at.drafted;
        for (uint32_t i = 0; i < step.context_rows; ++i)
            step.context_taps[i] = taps_at(at.drafted + i);
    }

    __device__ void begin_verify() {
        Round& round = told_.round;
        const Standing& at = told_.at;
        told_.rows[0] = at.anchor;
        round.drafted = told_.drafts;
        round.verified = depth_of(l_.input.ask, at, round.confidence, told_.drafts);
        Step& step = this->step();
        step.rows = round.verified + 1;
        step.logits_from = 0;
        step.runs = 1;
        step.run[0] = {0, step.rows, at.length, 0, l_.input.cache};
        step.context_rows = 0;
        for (uint32_t i = 0; i < step.rows; ++i) {
            step.tokens[i] = told_.rows[i];
            step.positions[i] = at.length + i;
            step.taps[i] = l_.input.taps != nullptr ? taps_at(at.length + i) : nullptr;
        }
    }

    // What becomes of the round.
    __device__ void conclude() {
        Round& round = told_.round;
        round.count = tokens_of(told_.rows, round.tokens, round.verified);
        told_.goes_on = move_on(l_.input.ask, round, told_.at) && *l_.stopping == 0;
        round.last = !told_.goes_on;
        if (told_.goes_on) told_.drafts = drafts_of(l_.input.ask, told_.at);
        arrive(&told_.decided);
        round.verify_ns = lap();
        if (blockIdx.x == 0) {
            l_.rounds[told_.made] = round;
            publish_to_host(l_.made, ++told_.made);
        }
        round.draft_ns = 0;
    }

    // By one warp.
    __device__ void count_experts() {
        uint32_t live = 0;
        for (uint32_t i = threadIdx.x; i < l_.layers; i += 32)
            live += l_.turns[kTarget].network.live[i];
        live = __reduce_add_sync(~0u, live);
        if (first_thread()) told_.round.live_experts = live;
    }

    // ns since the last lap.
    __device__ uint32_t lap() {
        const uint64_t now = now_ns(), began = told_.began;
        told_.began = now;
        return static_cast<uint32_t>(now - began);
    }

    // Both the first draft and the first choice follow the anchor.
    __device__ Ballot ballot(const Network& net, const float* logits, uint32_t rows) const {
        const RoundsAsk& ask = l_.input.ask;
        return {logits,          rows,      net.vocab, told_.at.length + 1,
                ask.temperature, ask.top_p, ask.min_p, ask.seed};
    }

    // The tokens of all rows to `to`; their probabilities, if that is asked for. All consumers of
    // all blocks; the logits are there once all have come here.
    __device__ void choose(const Ballot& ballot, uint32_t* to, float* probability) {
        all_blocks();
        const uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 32;
        const bool mine = row < ballot.rows;
        const Chooser chooser(ballot, mine ? row : 0);
        const uint64_t at = uint64_t{row} * gridDim.x + blockIdx.x;
        if (mine) {
            const uint64_t top = chooser.top();
            if (lane == 0) l_.tops[at] = top;
        }
        all_blocks();
        uint64_t top = 0, chosen = 0;
        if (mine) chosen = top = highest(l_.tops, row);
        if (ballot.temperature > 0 || probability != nullptr) {
            if (mine) {
                const uint64_t best = ballot.temperature > 0 ? chooser.best(top, -INFINITY) : top;
                const float sum = probability != nullptr ? chooser.sum(value_of_key(top)) : 0;
                if (lane == 0) {
                    l_.bests[0][at] = best;
                    l_.sums[at] = sum;
                }
            }
            all_blocks();
            if (mine) chosen = highest(l_.bests[0], row);
            if (ballot.masks()) chosen = masked(ballot, chooser, top, chosen);
        }
        if (mine) {
            const uint32_t token = token_of_key(chosen);
            if (probability != nullptr) {
                float sum = 0;
                for (uint32_t i = lane; i < gridDim.x; i += 32) sum += l_.sums[row * gridDim.x + i];
                sum = warp_sum(sum);
                if (lane == 0)
                    probability[row] = chooser.probability(token, value_of_key(top), sum);
            }
            if (lane == 0) to[row] = token;
        }
        sync_consumers();
    }

    // From the choice among all tokens to the one among those that the masks leave: a warp's, of
    // its row. All consumers of all blocks.
    __device__ uint64_t masked(const Ballot& ballot, const Chooser& chooser, uint64_t top,
                               uint64_t chosen) {
        const uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 32;
        const uint64_t at = uint64_t{row} * gridDim.x + blockIdx.x;
        bool open = row < ballot.rows;
#pragma unroll 1
        for (uint32_t turn = 0;; turn ^= 1) {
            const uint32_t token = token_of_key(chosen);
            if (open) {
                const float floor = chooser.logit(token), most = value_of_key(top);
                const double above = chooser.weight_above(most, floor);
                const double all = chooser.weight_above(most, -INFINITY);
                const uint64_t next = chooser.best(top, floor);
                if (lane == 0) {
                    l_.above[turn][at] = above;
                    l_.all[turn][at] = all;
                    l_.bests[turn ^ 1][at] = next;
                }
            }
            all_blocks();
            if (open) {
                open = !chooser.keeps(top, token, total(l_.above[turn], row),
                                      total(l_.all[turn], row));
                if (open) chosen = highest(l_.bests[turn ^ 1], row);
            }
            if (lane == 0 && row < kRowsMax) told_.open[row] = open;
            sync_consumers();
            bool any = false;
            for (const bool one : told_.open) any |= one;
            if (!any) return chosen;
        }
    }

    __device__ double total(const double* found, uint32_t row) const {
        double sum = 0;
        for (uint32_t i = threadIdx.x % 32; i < gridDim.x; i += 32)
            sum += found[row * gridDim.x + i];
        return warp_sum(sum);
    }

    // Of what all blocks have found for a row.
    __device__ uint64_t highest(const uint64_t* found, uint32_t row) const {
        uint64_t key = 0;
        for (uint32_t i = threadIdx.x % 32; i < gridDim.x; i += 32)
            key = max(key, found[row * gridDim.x + i]);
        return warp_highest(key);
    }

    const RoundsLaunch& l_;
    std::byte* memory_;
    Told& told_;
};

// The loader's side: it has the first pages of the model's step on their way while drafts are
// chosen, and asks for none of a round that does not come.
template <typename Faults>
__device__ __forceinline__ void load_rounds(const RoundsLaunch& launch, std::byte* memory,
                                            Told& told) {
    Place place{};
    uint32_t which = told.drafts > 0 ? kDrafter : kTarget, parity = 0, routed = 0;
#pragma unroll 1
    while (true) {
        Block block = block_of(launch.turns[which], memory);
        block.place = place;
        block.routed_turn = routed;
        Loader<Faults>(block).run(0, launch.turns[which].count);
        place = block.place;
        routed = block.routed_turn;
        if (which == kDrafter) {
            which = kTarget;
            continue;
        }
        wait(&told.decided, parity, Awaited::kVerdict, block.distress());
        parity ^= 1;
        if (!told.goes_on) return;
        which = told.drafts > 0 ? kDrafter : kTarget;
    }
}

template <typename Faults>
__global__ __launch_bounds__(kBlockThreads,
                             1) void rounds(const __grid_constant__ RoundsLaunch launch) {
    std::byte* const memory = dynamic_shared();
    Told& told = static_shared<Told>();
    if (threadIdx.x == 0) {
        const Block block = block_of(launch.turns[kTarget], memory);
        told.at = launch.input.from;
        told.drafts = drafts_of(launch.input.ask, told.at);
        told.round = {};
        told.made = 0;
        told.began = now_ns();
        told.place = {};
        told.turns = 0;
        init(&told.decided, 1);
        block.counts() = {};
        block.init_barriers();
    }
    __syncthreads();
    if (threadIdx.x < kConsumerThreads) {
        Writer<Faults>(launch, memory, told).run();
        return;
    }
    if (threadIdx.x == kConsumerThreads) load_rounds<Faults>(launch, memory, told);
}

}  // namespace tessera::gpu
