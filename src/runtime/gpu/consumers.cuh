// The consumers: warps that do a phase's work on their block's share, page by page. Between phases
// they wait for all blocks; within one they wait for pages alone: a unit's items are dealt out among
// them, each leaves what it has of the unit, and kAdders of them add that up a little later, each
// thread one element.
#pragma once

#include "runtime/gpu/activations.cuh"
#include "runtime/gpu/attend.cuh"

namespace tessera::gpu {

template <typename Faults>
class Consumers : private Activations {
  public:
    __device__ explicit Consumers(Block& block) : Activations(block) {}

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

    // All of the block's pages. Items are dealt out in turn, so each warp has one of a page at most,
    // and looks at every page: its parity alone then says that it has come, since no warp can be a
    // turn of the ring ahead or behind.
    __device__ void matrix(const Phase& p) {
        const Items items(p, p.moe ? b_.routing().live : 0);
        // Waits make the compiler read memory anew: what the loop needs lies in registers.
        const Format format = p.matrix.format;
        const uint32_t item_bytes = p.item_bytes, page_items = p.page_items,
                       item_pieces = p.item_pieces, depth = b_.ring.depth;
        const bool direct = p.direct();
        Units units(*this, p, items);
        uint32_t mine = warp_;  // of the page's items
        uint32_t item = warp_;  // the warp's next, of the block's
#pragma unroll 1
        for (uint32_t first = 0;; first += page_items) {
            const bool over = first >= items.count;
            if (over) stamp(&Stamp::streamed);
            if (!direct) {
                const Watch watch(net_, b_.counts().stamp.summed);
                units.come_to(item);
            }
            if (over) break;
            {
                const Watch watch(net_, b_.counts().stamp.paged);
                b_.ring.wait_full(b_.place, b_.distress());
            }
            if (mine < page_items && item < items.count) {
                multiply_pieces(format, b_.ring.page(b_.place) + mine * item_bytes,
                                columns_of(p, items, units, item), item_pieces, units.sums);
                if (direct) {
                    const uint32_t slot = divide(item, items.expert_units());
                    contribute(items.own, slot,
                               items.own.begin + item - slot * items.expert_units(), units.sums,
                               unscale(format));
                    units.sums = {};
                }
                item += kConsumers;
            }
            __syncwarp();
            if (threadIdx.x % 32 == 0) b_.ring.let_go(b_.place);
            b_.place.advance(depth);
            mine += mine < page_items ? kConsumers - page_items : 0u - page_items;
        }
        if (!direct) b_.units += items.units;
    }

    // Where the columns of an item begin, of token lane / 4. Of an expert's down it has a row for
    // each of its choices; where it did not choose the expert, the row of zeros behind them all.
    class Units;
    __device__ const uint16_t* columns_of(const Phase& p, const Items& items, const Units& units,
                                          uint32_t item) const {
        uint32_t row = threadIdx.x % 32 / 4;
        if (p.moe && p.op == Op::down) {
            const uint32_t slot = divide(item, items.expert_units() * items.unit_items);
            row = b_.routing().pair[slot][row];
            if (row == kNoPair) row = step_.rows * net_.per_token;
        }
        const uint32_t in_unit = p.direct() ? 0 : units.in_unit(item);
        return b_.activations() + row * stride_ + in_unit * piece_columns(p.matrix.format);
    }

    // A block's units of a phase, one after the other, as one warp sees them: it leaves what it has
    // of each, and is one of those who add up some.
    class Units {
      public:
        TwoSums sums;  // of the unit that the warp is at

        __device__ Units(Consumers& warp, const Phase& p, const Items& items)
            : c_(warp),
              p_(p),
              items_(items),
              begin_(0u - items.before),
              lead_(p.moe ? 0 : items.first - divide(items.first, p.group_units) * p.group_units),
              adder_(c_.warp_ / kAdders) {}

        __device__ uint32_t in_unit(uint32_t item) const { return item - begin_; }

        // The warp's next item is `item`: it is done with all units before that one's. What it left
        // last is added up one unit later: by then the others have left theirs.
        __device__ __forceinline__ void come_to(uint32_t item) {
#pragma unroll 1
            while (at_ <= items_.units && item >= end()) {
                if (at_ < items_.units) leave();
                if (at_ > 0) add_up(at_ - 1);
                ++at_;
                begin_ += items_.unit_items;
            }
        }

      private:
        __device__ uint32_t end() const { return min(begin_ + items_.unit_items, items_.count); }

        // Items of unit `unit` that the block has: those of how many warps.
        __device__ uint32_t leavers(uint32_t unit) const {
            const uint32_t end = min((unit + 1) * items_.unit_items - items_.before, items_.count);
            const uint32_t begin = unit == 0 ? 0 : unit * items_.unit_items - items_.before;
            return min(end - begin, kConsumers);
        }
        __device__ float* left(uint32_t slot) const {
            return c_.b_.deposits() + slot * kConsumers * kUnitSums;
        }

        __device__ __forceinline__ void leave() {
            const uint32_t number = c_.b_.units + at_, slot = number % kUnitSlots;
            Counts& counts = c_.b_.counts();
            wait(&counts.added[slot], number / kUnitSlots % 2 ^ 1, Awaited::kDeposits,
                 c_.b_.distress());
            const uint32_t begin = at_ == 0 ? 0 : begin_;
            const uint32_t place = (c_.warp_ + kConsumers - begin % kConsumers) % kConsumers;
            if (place < end() - begin) {
                const uint32_t lane = threadIdx.x % 32;
                reinterpret_cast<float4*>(left(slot) + place * kUnitSums)[lane] = {
                    sums[0], sums[1], sums[2], sums[3]};
                sums = {};
            }
            __syncwarp();
            if (threadIdx.x % 32 == 0) arrive(&counts.left[slot]);
        }

        // By the adders of the unit's group.
        __device__ __forceinline__ void add_up(uint32_t unit) {
            const uint32_t per_group = p_.group_units;
            const uint32_t order = divide(lead_ + unit, per_group);
            if ((per_group > 2 ? 0 : order % (kConsumers / kAdders)) != adder_) return;
            const uint32_t in_group = lead_ + unit - order * per_group;
            const uint32_t number = c_.b_.units + unit, slot = number % kUnitSlots;
            const uint32_t element = threadIdx.x % kUnitSums, count = leavers(unit);
            Counts& counts = c_.b_.counts();
            wait(&counts.left[slot], number / kUnitSlots % 2, Awaited::kDeposits,
                 c_.b_.distress());
            const float* const from = left(slot) + element;
            float parts[kConsumers], sum = 0;
#pragma unroll
            for (uint32_t i = 0; i < kConsumers; ++i)
                parts[i] = i < count ? from[i * kUnitSums] : 0.0f;
#pragma unroll
            for (uint32_t i = 0; i < kConsumers; ++i) sum += parts[i];
            __syncwarp();
            if (threadIdx.x % 32 == 0) arrive(&counts.added[slot]);
            sum *= unscale(p_.matrix.format);
            const bool first = unit == 0 || in_group == 0;
            const bool last = unit + 1 == items_.units || in_group + 1 == per_group;
            if (per_group <= 2) {
                if (first) held_ = 0;
                if (per_group == 2 && in_group == 0) {
                    held_ = sum;
                    sum = 0;
                }
                if (last) c_.group_done(p_, items_, unit, order, held_, sum);
            } else {
                float* const all = c_.head_sums();
                for (uint32_t u = 0; first && u < per_group; ++u) all[u * kUnitSums] = 0;
                all[in_group * kUnitSums] = sum;
                if (last) c_.head_done(p_, items_, unit);
            }
        }

        Consumers& c_;
        const Phase& p_;
        const Items& items_;
        uint32_t at_ = 0, begin_;  // unit, and its first item, which may be another block's
        uint32_t lead_;            // units of its group before the block's first
        uint32_t adder_;
        float held_ = 0;  // of the group's first unit
    };

    // An element of a group of one unit or two (`first`, then `sum`; of one it is `sum`), by the
    // block's adders of the group.
    __device__ __forceinline__ void group_done(const Phase& p, const Items& items, uint32_t unit,
                                               uint32_t order, float first, float sum) {
        uint32_t group, slot = 0;
        if (!p.moe) {
            group = divide(items.first + unit, p.group_units);
            if (!items.has_all(group)) {
                float* const to = partial(p, group, items.sharer(group)) + element();
                if (p.group_units == 2) to[kUnitSums] = sum;
                to[0] = p.group_units == 2 ? first : sum;
                if (!last_of_group(p, items, group)) return;
                first = total(p, items, group, 0);
                sum = p.group_units == 2 ? total(p, items, group, 1) : first;
            }
        } else if (p.op == Op::gate_up) {
            const uint32_t pair = items.own.begin + order;
            slot = divide(pair, items.groups);
            group = pair - slot * items.groups;
        } else {
            slot = divide(order, items.expert_units());
            group = items.own.begin + order - slot * items.expert_units();
        }
        epilogue(p, items, group, slot, first, sum);
    }

    // Where this thread's element of a drafter's head is, kUnitSums from one unit's to the next's.
    __device__ float* head_sums() const {
        return b_.sums() + element_row() * kTokens + element_token();
    }

    // A drafter's head, of all of whose units the sums are there.
    __device__ void head_done(const Phase& p, const Items& items, uint32_t unit) {
        const uint32_t group = divide(items.first + unit, p.group_units);
        float* const all = head_sums();
        if (!items.has_all(group)) {
            float* const to = partial(p, group, items.sharer(group)) + element();
            for (uint32_t u = 0; u < p.group_units; ++u) to[u * kUnitSums] = all[u * kUnitSums];
            if (!last_of_group(p, items, group)) return;
            for (uint32_t u = 0; u < p.group_units; ++u)
                all[u * kUnitSums] = total(p, items, group, u);
        }
        sync_adders();
        if (warp_ % kAdders == 0) place_head(p, group, b_.sums());
        sync_adders();
    }

    // Whether this block is the last to have written its part of the group; the others' are seen
    // then.
    __device__ bool last_of_group(const Phase& p, const Items& items, uint32_t group) {
        uint32_t& last = b_.counts().last_of[warp_ / kAdders];
        sync_adders();
        if (threadIdx.x % (kAdders * 32) == 0)
            last = arrive_last(&net_.arrivals[p.counters + group], items.sharers(group));
        sync_adders();
        return last != 0;
    }

    // What all blocks have of an element, in the order of columns.
    __device__ float total(const Phase& p, const Items& items, uint32_t group,
                           uint32_t unit) const {
        const float* const from = partial(p, group, 0) + unit * kUnitSums + element();
        const uint32_t stride = p.group_units * kUnitSums, sharers = items.sharers(group);
        float sum = 0;
#pragma unroll 4
        for (uint32_t part = 0; part < sharers; ++part) sum += from[part * stride];
        return sum;
    }

    __device__ void sync_adders() const {
        sync_threads(kConsumersBarrier + 1 + warp_ / kAdders, kAdders * 32);
    }

    __device__ float* partial(const Phase& p, uint32_t group, uint32_t piece) const {
        return net_.partials + p.partials +
               (uint64_t{group} * p.pieces_max + piece) * p.group_units * kUnitSums;
    }
};

}  // namespace tessera::gpu
