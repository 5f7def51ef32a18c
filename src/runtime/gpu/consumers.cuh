// The consumers: warps that do a phase's work on their block's share, page by page. Between phases
// they wait for all blocks; within one they wait for pages alone: a unit's pages are dealt out
// among them, and the last to be done with a unit adds up what all have of it.
#pragma once

#include "runtime/gpu/activations.cuh"
#include "runtime/gpu/attend.cuh"

namespace tessera::gpu {

template <typename Faults>
class Consumers : private Activations {
  public:
    __device__ explicit Consumers(Block& block) : Activations(block) {
        if (threadIdx.x == 0) b_.counts().shared[0] = b_.counts().shared[1] = kNone;
    }

    // What a phase is lies in shared memory before it begins: its words are asked for one phase
    // ahead.
    __device__ __forceinline__ void run(uint32_t begin, uint32_t end) {
        uint32_t word = word_of(begin);
        for (uint32_t i = begin; i < end; ++i) {
            if (threadIdx.x < kPhaseWords)
                reinterpret_cast<uint32_t*>(&b_.phase(i))[threadIdx.x] = word;
            if (i + 1 < end) word = word_of(i + 1);
            stamp(&Stamp::arrived);
            sync_consumers();
            // Of a launch's first phase the launch itself is the barrier.
            if (b_.phase(i).barrier && i > begin) all_blocks(i);
            stamp(&Stamp::began);
            phase(i);
            stamp(&Stamp::ended);
            if (net_.stamps != nullptr && threadIdx.x == 0)
                net_.stamps[i * gridDim.x + blockIdx.x] = b_.counts().stamp;
        }
    }

  private:
    // In shared memory until the phase is over: as variables they took eight registers.
    __device__ __forceinline__ void stamp(uint64_t Stamp::*when) const {
        if (net_.stamps != nullptr && threadIdx.x == 0) b_.counts().stamp.*when = now_ns();
    }

    // Adds what its scope takes the first thread to a stamp, in a kernel that watches.
    class Watch {
      public:
        __device__ Watch(const Network& net, uint64_t& sum)
            : watches_(Faults::kWatches && net.stamps != nullptr && threadIdx.x == 0),
              sum_(sum),
              began_(watches_ ? now_ns() : 0) {}
        __device__ ~Watch() {
            if (watches_) sum_ += now_ns() - began_;
        }

      private:
        bool watches_;
        uint64_t& sum_;
        uint64_t began_;
    };

    static constexpr uint32_t kPhaseWords = sizeof(Phase) / 4;
    __device__ uint32_t word_of(uint32_t phase) const {
        return threadIdx.x < kPhaseWords
                   ? reinterpret_cast<const uint32_t*>(&b_.phases[phase])[threadIdx.x]
                   : 0;
    }

    // After sync_consumers; before phase `index`.
    __device__ void all_blocks(uint32_t index) {
        if (threadIdx.x == 0) {
            const uint64_t all = b_.counts().passed += gridDim.x;
            if (Faults::signals(index)) signal(net_.barrier);
            wait(net_.barrier, all, b_.distress());
        }
        sync_consumers();
    }

    __device__ __forceinline__ void phase(uint32_t index) {
        const Phase& p = b_.phase(index);
        switch (p.op) {
            case Op::embed:
                return embed();
            case Op::attend:
                return attend(b_, p);
            case Op::exchange:
                return exchange(p);
            default:
                break;
        }
        if (b_.fresh(p, index)) prepare(p);
        if (b_.routes(p, index)) route(p);
        if (threadIdx.x < kDepositSlots)
            b_.counts().added[threadIdx.x] = b_.counts().finished[threadIdx.x] = 0;
        sync_consumers();
        stamp(&Stamp::prepared);
        if (Faults::kWatches && threadIdx.x == 0)
            b_.counts().stamp.paged = b_.counts().stamp.summed = 0;
        matrix(p);
        if (p.moe && p.op == Op::down) {
            sync_consumers();
            add_experts(p);
        }
        sync_consumers();  // shared memory is free for what follows
    }

    // ---------------------------------------------------------------- matrices

    // The block's pages of a phase, a warp every kConsumers-th. No warp waits for another: what it
    // has of a unit it leaves, and the last to leave adds up all of it; so with the units of a
    // group.
    __device__ void matrix(const Phase& p) {
        const Pages pages(p, p.moe ? b_.routing().live : 0);
        // Waits make the compiler read memory anew: what the loop needs lies in registers.
        const Format format = p.matrix.format;
        const uint32_t unit_bytes = p.unit_pieces * p.piece_bytes;
        const bool direct = p.moe && p.op == Op::down;
        Place place = b_.place;
        place.advance(b_.ring.depth, warp_);
        TwoSums sums;
        Page page{};
        uint32_t in_page = 0;  // unit of the page
        for (uint32_t n = warp_;;) {
            const bool tail = n >= pages.count;
            const float* done = nullptr;    // sums of a group that is complete
            uint32_t group = 0, order = 0;  // which, and the how-manieth of the block's
            if (!tail) {
                if (in_page == 0) {
                    const Watch watch(net_, b_.counts().stamp.paged);
                    page = b_.wait_page(place, b_.pages + n);
                }
                multiply_pieces(format, b_.ring.page(place) + in_page * unit_bytes,
                                token_of(p, page) + page.first * piece_columns(format), page.pieces,
                                sums);
                // Unless it has another page of the unit.
                if (direct && page.of == 1) {
                    contribute(pages.own, page.slot, page.unit + in_page, sums, unscale(format));
                    sums = {};
                } else if (page.index + kConsumers >= page.of) {
                    const Watch watch(net_, b_.counts().stamp.summed);
                    group = divide(page.unit + in_page, p.group_units);
                    order = divide(page.order + in_page + pages.lead(p), p.group_units);
                    done = leave(p, pages, page, in_page, order, sums);
                    sums = {};
                }
                if (++in_page == page.units) {
                    in_page = 0;
                    __syncwarp();
                    if (threadIdx.x % 32 == 0) b_.ring.let_go(place);
                    place.advance(b_.ring.depth, kConsumers);
                    n += kConsumers;
                }
            } else {
                stamp(&Stamp::streamed);
                if (!p.moe) done = take_shared(p, pages, group);
            }
            if (done != nullptr) {
                epilogue(p, pages, group, done, page.slot);
                if (!tail) finish(order);
            }
            if (tail) break;
        }
        b_.place.advance(b_.ring.depth, pages.count);
        b_.pages += pages.count;
    }

    // Where the columns of token lane / 4 begin. Of an expert's down it has a row for each of its
    // choices; where it did not choose the expert, the row of zeros behind them all.
    __device__ const uint16_t* token_of(const Phase& p, const Page& page) const {
        uint32_t row = threadIdx.x % 32 / 4;
        if (p.moe && p.op == Op::down) {
            row = b_.routing().pair[page.slot][row];
            if (row == kNoPair) row = step_.rows * net_.per_token;
        }
        return b_.activations() + row * stride_;
    }

    // A unit's sums by the lanes of one warp go to `to` [row][token].
    __device__ static void store_sums(const TwoSums& sums, float times, float* to) {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        auto* const pairs = reinterpret_cast<float2*>(to);
        pairs[2 * g * 4 + q] = {sums[0] * times, sums[1] * times};
        pairs[(2 * g + 1) * 4 + q] = {sums[2] * times, sums[3] * times};
    }

    // Leaves what this warp has of unit `in_page` of the page, of the block's group `group`. The
    // sums of the group, if that completes them and no other block has a part; else null.
    __device__ const float* leave(const Phase& p, const Pages& pages, const Page& page,
                                  uint32_t in_page, uint32_t group, const TwoSums& sums) {
        const uint32_t lane = threadIdx.x % 32, unit = page.unit + in_page;
        Counts& counts = b_.counts();
        const uint32_t group_slot = group % kDepositSlots;
        float* const all = b_.sums() + group_slot * p.group_units * kUnitSums;
        float* const own = all + (unit - divide(unit, p.group_units) * p.group_units) * kUnitSums;
        const float times = unscale(p.matrix.format);
        const uint32_t leavers = min(page.of, kConsumers);
        const uint32_t order = page.order + in_page, slot = order % kDepositSlots;
        wait_in_block(&counts.added[slot], order / kDepositSlots, b_.distress());
        if (leavers == 1) {
            wait_in_block(&counts.finished[group_slot], group / kDepositSlots, b_.distress());
            store_sums(sums, times, own);
            __syncwarp();
        } else {
            float* const deposits = b_.deposits() + slot * kConsumers * kUnitSums;
            store_sums(sums, 1.0f, deposits + page.index % kConsumers * kUnitSums);
            if (!last_of_warps(&counts.deposited[slot], leavers)) return nullptr;
            // In the order of columns.
            float4 sum{};
#pragma unroll 2
            for (uint32_t i = 0; i < leavers; ++i) {
                const float4 more = reinterpret_cast<const float4*>(deposits + i * kUnitSums)[lane];
                sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
            }
            wait_in_block(&counts.finished[group_slot], group / kDepositSlots, b_.distress());
            reinterpret_cast<float4*>(own)[lane] = {sum.x * times, sum.y * times, sum.z * times,
                                                    sum.w * times};
            __syncwarp();
        }
        if (lane == 0) publish_in_block(&counts.added[slot], order / kDepositSlots + 1);
        // The units of the group that this block has.
        const uint32_t lead = pages.lead(p), first = group * p.group_units;
        const uint32_t begin = max(first, lead),
                       end = min(first + p.group_units, lead + pages.units);
        if (end - begin > 1 && !last_of_warps(&counts.summed[group_slot], end - begin))
            return nullptr;
        if (p.moe) return all;
        const uint32_t g = divide(unit, p.group_units);
        const Range of_group{g * pages.group_pages, (g + 1) * pages.group_pages};
        if (pages.own.begin <= of_group.begin && of_group.end <= pages.own.end) return all;
        share(p, pages, g, of_group.begin < pages.own.begin ? 0 : 1, begin - first, end - first,
              all);
        finish(group);
        return nullptr;
    }

    // The block's group `group` needs its sums no longer.
    __device__ void finish(uint32_t group) {
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            publish_in_block(&b_.counts().finished[group % kDepositSlots],
                             group / kDepositSlots + 1);
    }

    // Whether this warp is the last of `count` to have come so far; the others' writes are seen
    // then.
    __device__ static bool last_of_warps(uint32_t* counter, uint32_t count) {
        bool last = false;
        __syncwarp();
        if (threadIdx.x % 32 == 0) last = warp_arrives_last(counter, count);
        return __shfl_sync(~0u, last, 0);
    }

    // A group that other blocks have parts of, too: the block's first, or its last. What it has of
    // it, units [begin, end), goes to `partials`.
    __device__ void share(const Phase& p, const Pages& pages, uint32_t group, uint32_t which,
                          uint32_t begin, uint32_t end, const float* sums) {
        const uint32_t lane = threadIdx.x % 32;
        if (lane == 0) b_.counts().shared[which] = group;
        float* const to = partial(p, group, pages.sharer(group));
#pragma unroll 1
        for (uint32_t u = 0; u < p.group_units; ++u)
            reinterpret_cast<float4*>(to + u * kUnitSums)[lane] =
                u >= begin && u < end ? reinterpret_cast<const float4*>(sums + u * kUnitSums)[lane]
                                      : float4{};
    }

    // When the block's pages are done: whoever comes last to a group adds up its parts, in the
    // order of columns. Of the block's two, a warp goes on with each; null if there is none, or
    // another block is later. All consumers.
    __device__ const float* take_shared(const Phase& p, const Pages& pages, uint32_t& group) {
        Counts& counts = b_.counts();
        sync_consumers();
        if (warp_ < 2 && threadIdx.x % 32 == 0 && counts.shared[warp_] != kNone)
            counts.last_of[warp_] = arrive_last(&net_.arrivals[p.counters + counts.shared[warp_]],
                                                pages.sharers(counts.shared[warp_]));
        sync_consumers();
        const uint32_t fours = p.group_units * kUnitSums / 4;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < 2 * fours; i += kConsumerThreads) {
            const uint32_t which = i < fours ? 0 : 1, at = i - which * fours;
            if (counts.shared[which] == kNone || !counts.last_of[which]) continue;
            const uint32_t sharers = pages.sharers(counts.shared[which]);
            float4 sum{};
#pragma unroll 4
            for (uint32_t part = 0; part < sharers; ++part) {
                const float4 more =
                    reinterpret_cast<const float4*>(partial(p, counts.shared[which], part))[at];
                sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
            }
            reinterpret_cast<float4*>(b_.sums())[i] = sum;
        }
        sync_consumers();
        if (warp_ >= 2) return nullptr;
        group = counts.shared[warp_];
        const bool last = group != kNone && counts.last_of[warp_];
        __syncwarp();
        counts.shared[warp_] = kNone;
        return last ? b_.sums() + warp_ * p.group_units * kUnitSums : nullptr;
    }

    __device__ float* partial(const Phase& p, uint32_t group, uint32_t piece) const {
        return net_.partials + p.partials +
               (uint64_t{group} * p.pieces_max + piece) * p.group_units * kUnitSums;
    }
};

}  // namespace tessera::gpu
