// The consumers: warps that do a phase's work on their block's share. Between phases they wait for
// all blocks. Where weights stream, multipliers wait for pages alone: items are dealt out among
// them, and each leaves what it has of a bundle of units for one of the adders.
#pragma once

#include "runtime/gpu/activations.cuh"
#include "runtime/gpu/attend.cuh"

namespace tessera::gpu {

template <typename Faults>
class Consumers : private Activations {
  public:
    __device__ explicit Consumers(Block& block) : Activations(block) {}

    // What a phase is lies in shared memory before it begins: it is on its way one phase ahead.
    __device__ __forceinline__ void run(uint32_t begin, uint32_t end) {
        ask_for_phase(begin);
        for (uint32_t i = begin; i < end; ++i) {
            copies_done();
            stamp(&Stamp::arrived);
            sync_consumers();
            if (i + 1 < end) ask_for_phase(i + 1);
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
        __device__ Watch(const Network& net, uint64_t& sum) : net_(net), sum_(sum) {
            if (watches()) began_ = now_ns();
        }
        __device__ ~Watch() {
            if (watches()) sum_ += now_ns() - began_;
        }

      private:
        __device__ bool watches() const {
            return Faults::kWatches && net_.stamps != nullptr && threadIdx.x == 0;
        }

        const Network& net_;
        uint64_t& sum_;
        uint64_t began_ = 0;
    };

    __device__ void ask_for_phase(uint32_t index) const {
        if (threadIdx.x < sizeof(Phase) / 4)
            copy_async(reinterpret_cast<uint32_t*>(&b_.phase(index)) + threadIdx.x,
                       reinterpret_cast<const uint32_t*>(&b_.phases[index]) + threadIdx.x);
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

    __device__ __forceinline__ void matrix(const Phase& p) {
        const Items items(p, p.moe ? b_.routing().live : 0);
        if (warp_ >= kMultipliers) {
            if (!p.direct()) add(p, items);
            return;
        }
        // Where every warp has an item of a page: loops of their own, since what a warp does
        // between two items it does alone, at ten cycles an instruction.
        const bool all = p.page_items == kMultipliers;
        const bool mxfp4 = p.matrix.format == Format::mxfp4, fp8 = p.matrix.format == Format::fp8;
        if (all && mxfp4 && p.item_units == 2) {
            multiply_all<Format::mxfp4>(items);
        } else if (all && fp8 && p.group_units == 1 && !p.moe) {
            multiply_all<Format::fp8>(items);
        } else if (all && mxfp4 && p.direct() && p.item_pieces == 2) {
            multiply_directly(items);
        } else {
            multiply(p, items);
        }
        stamp(&Stamp::streamed);
    }

    // Of more than two units a group is added up by one adder: its units, one after the other.
    __device__ static bool by_one_adder(const Phase& p) { return p.group_units > 2; }

    // Where a multiplier stands: its next item of the block's, and the bundle that it has sums of.
    struct Course {
        uint32_t item, bundle, adder, end;
    };

    // Leaves all bundles that end before the multiplier's next item; how many.
    __device__ __forceinline__ uint32_t leave_ended(const Items& items, bool one_adder, bool pairs,
                                                    Course& at, TwoSums (&sums)[2]) {
        uint32_t left = 0;
        while (at.item >= at.end && at.bundle < items.bundles) {
            const Watch watch(net_, b_.counts().stamp.summed);
            leave(items.of_bundle(at.bundle), at.adder, pairs, sums);
            at.end = items.of_bundle(++at.bundle).end;
            if (!one_adder && ++at.adder == kAdders) at.adder = 0;
            ++left;
        }
        return left;
    }

    __device__ __forceinline__ void wait_page() const {
        const Watch watch(net_, b_.counts().stamp.paged);
        b_.ring.wait_full(b_.place, b_.distress());
    }
    __device__ __forceinline__ void let_page_go() const {
        b_.arrive_together(&b_.ring.empty[b_.place.slot]);
        b_.place.advance(b_.ring.depth);
    }
    // A last page that has no item for this multiplier.
    __device__ __forceinline__ void pass_last_page(const Items& items) const {
        if (items.count % kMultipliers == 0 || warp_ < items.count % kMultipliers) return;
        wait_page();
        let_page_go();
    }

    // Gate and up in mxfp4, or units in fp8: an item of every page, of one piece.
    template <Format format>
    __device__ __forceinline__ void multiply_all(const Items& items) {
        constexpr uint32_t kItemBytes = panel_bytes(format);
        constexpr bool kPairs = format == Format::mxfp4;
        TwoSums sums[2];
        Course at{warp_, 0, 0, items.of_bundle(0).end};
        const uint16_t* token =
            columns_of(threadIdx.x % 32 / 4) + (warp_ + items.before) * kPanelColumns;
#pragma unroll 1
        while (true) {
            token -= leave_ended(items, false, kPairs, at, sums) * items.per_bundle * kPanelColumns;
            if (at.item >= items.count) break;
            wait_page();
            const std::byte* const piece = b_.ring.page(b_.place) + warp_ * kItemBytes;
            if constexpr (kPairs) {
                multiply_mxfp4_two<true>(piece, piece + kMultipliers * kItemBytes, token, sums);
            } else {
                multiply_piece<format>(piece, token, sums[0]);
            }
            let_page_go();
            at.item += kMultipliers;
            token += kMultipliers * kPanelColumns;
        }
        pass_last_page(items);
    }

    // Experts' down, a unit of every page: nobody else has a part of its sums.
    __device__ __forceinline__ void multiply_directly(const Items& items) {
        constexpr uint32_t kPieceBytes = panel_bytes(Format::mxfp4);
        const Quotient by_expert(items.expert_units());
#pragma unroll 1
        for (uint32_t item = warp_; item < items.count; item += kMultipliers) {
            const uint32_t slot = by_expert.of(item), in_slot = item - slot * by_expert.divisor;
            const uint16_t* const token = expert_columns(slot);
            TwoSums sums[2];
            wait_page();
            const std::byte* const piece = b_.ring.page(b_.place) + 2 * warp_ * kPieceBytes;
            multiply_mxfp4_two<false>(piece, piece + kPieceBytes, token, sums);
            let_page_go();
            sums[0] += sums[1];
            contribute(items.own, slot, items.own.begin + in_slot, sums[0], unscale(Format::mxfp4));
        }
        pass_last_page(items);
    }

    // All of the block's pages, by a multiplier: it has one item of a page at most, and looks at
    // every page, so that it is never a turn of the ring ahead or behind.
    __device__ __forceinline__ void multiply(const Phase& p, const Items& items) {
        // Waits make the compiler read memory anew: what the loop needs lies in registers.
        const Format format = p.matrix.format;
        const uint32_t page_items = p.page_items, item_bytes = p.item_bytes,
                       item_pieces = p.item_pieces, columns = piece_columns(format) * item_pieces;
        const bool direct = p.direct(), pairs = p.item_units == 2, one_adder = by_one_adder(p);
        const bool experts_down = p.moe && p.op == Op::down;
        const Quotient by_expert(items.expert_units() * items.per_bundle);
        const uint16_t* const row = columns_of(threadIdx.x % 32 / 4);
        TwoSums sums[2];
        Course at{warp_, 0, 0, direct ? ~0u : items.of_bundle(0).end};
        uint32_t begin = 0u - items.before;  // of the bundle
#pragma unroll 1
        for (uint32_t first = 0;; first += page_items) {
            begin += leave_ended(items, one_adder, pairs, at, sums) * items.per_bundle;
            if (first >= items.count) break;
            wait_page();
            const uint32_t mine = at.item - first;
            if (mine < page_items && at.item < items.count) {
                const std::byte* const piece = b_.ring.page(b_.place) + mine * item_bytes;
                const uint16_t* token = row + (at.item - begin) * columns;
                uint32_t slot = 0, in_slot = 0;
                if (experts_down) {
                    slot = by_expert.of(at.item);
                    in_slot = at.item - slot * by_expert.divisor;
                    const uint32_t unit = divide(in_slot, items.per_bundle);
                    token = expert_columns(slot) + (in_slot - unit * items.per_bundle) * columns;
                }
                multiply_item(format, piece, pairs, page_items * item_bytes, token, item_pieces,
                              sums);
                if (direct) {
                    contribute(items.own, slot, items.own.begin + in_slot, sums[0],
                               unscale(format));
                    sums[0] = {};
                }
                at.item += kMultipliers;
            }
            let_page_go();
        }
    }

    __device__ const uint16_t* columns_of(uint32_t row) const {
        return b_.activations() + row * stride_;
    }

    // An expert's down multiplies a row for each of its choices; where a token did not choose it,
    // the row of zeros behind them all.
    __device__ const uint16_t* expert_columns(uint32_t slot) const {
        uint32_t row = b_.routing().pair[slot][threadIdx.x % 32 / 4];
        if (row == kNoPair) row = step_.rows * net_.per_token;
        return columns_of(row);
    }

    // What multipliers leave for an adder: [item modulo kMultipliers][unit][lane].
    __device__ float4* left_for(uint32_t adder) const {
        return reinterpret_cast<float4*>(b_.deposits()) + adder * kMultipliers * 2 * 32;
    }

    // Leaves what this multiplier has of a bundle, if anything, and says so.
    __device__ __forceinline__ void leave(const Range& bundle, uint32_t adder, bool pairs,
                                          TwoSums (&sums)[2]) {
        Counts& counts = b_.counts();
        wait(&counts.added[adder], (b_.turns >> adder & 1) ^ 1, Awaited::kDeposits, b_.distress());
        b_.turns ^= 1u << adder;
        const uint32_t place = (warp_ + kMultipliers - bundle.begin % kMultipliers) % kMultipliers;
        if (place < bundle.end - bundle.begin) {
            float4* const to = left_for(adder) + place * 2 * 32 + threadIdx.x % 32;
            to[0] = {sums[0][0], sums[0][1], sums[0][2], sums[0][3]};
            if (pairs) to[32] = {sums[1][0], sums[1][1], sums[1][2], sums[1][3]};
            sums[0] = sums[1] = {};
        }
        b_.arrive_together(&counts.left[adder]);
    }

    // The bundles of an adder, as they come.
    __device__ __forceinline__ void add(const Phase& p, const Items& items) {
        const uint32_t adder = warp_ - kMultipliers, lane = threadIdx.x % 32;
        const bool pairs = p.item_units == 2, one_adder = by_one_adder(p);
        const float times = unscale(p.matrix.format);
        const uint32_t per_group = divide(p.group_units, p.item_units);  // bundles
        Counts& counts = b_.counts();
        if (one_adder && adder > 0) return;
#pragma unroll 1
        for (uint32_t bundle = adder; bundle < items.bundles; bundle += one_adder ? 1 : kAdders) {
            const Range of = items.of_bundle(bundle);
            const uint32_t leavers = min(of.end - of.begin, kMultipliers);
            wait(&counts.left[adder], b_.turns >> adder & 1, Awaited::kDeposits, b_.distress());
            b_.turns ^= 1u << adder;
            const float4* from = left_for(adder) + lane;
            float4 first{}, second{};
#pragma unroll 4
            for (uint32_t i = 0; i < leavers; ++i, from += 2 * 32) {
                first = plus(first, from[0]);
                if (pairs) second = plus(second, from[32]);
            }
            b_.arrive_together(&counts.added[adder]);
            first = scaled(first, times);
            second = scaled(second, times);
            const uint32_t at = items.first + bundle;
            const uint32_t group = p.moe ? 0 : divide(at, per_group);
            if (one_adder) {
                take_head(p, items, group, at - group * per_group, bundle, first);
            } else {
                take(p, items, group, bundle, first, second);
            }
        }
    }

    __device__ static float4 plus(const float4& a, const float4& b) {
        return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
    }
    __device__ static float4 scaled(const float4& a, float by) {
        return {a.x * by, a.y * by, a.z * by, a.w * by};
    }

    // A group of one bundle.
    __device__ __forceinline__ void take(const Phase& p, const Items& items, uint32_t group,
                                         uint32_t bundle, float4 first, float4 second) {
        uint32_t slot = 0;
        if (p.moe) {
            const bool down = p.op == Op::down;
            const uint32_t per_slot = down ? items.expert_units() : items.groups;
            const uint32_t at = bundle + (down ? 0 : items.own.begin);
            slot = divide(at, per_slot);
            group = at - slot * per_slot + (down ? items.own.begin : 0);
        } else if (!items.has_all(group)) {
            float4* const to = partial(p, group, items.sharer(group)) + threadIdx.x % 32;
            to[0] = first;
            if (p.item_units == 2) to[32] = second;
            if (!last_of_group(p, items, group)) return;
            first = total(p, items, group, 0);
            if (p.item_units == 2) second = total(p, items, group, 1);
        }
        epilogue(p, items, group, slot, first, second);
    }

    // Unit `unit` of a drafter's head.
    __device__ void take_head(const Phase& p, const Items& items, uint32_t group, uint32_t unit,
                              uint32_t bundle, const float4& sum) {
        if (bundle == 0 || unit == 0)
            for (uint32_t u = 0; u < p.group_units; ++u) store_of_head(u, {});
        store_of_head(unit, sum);
        if (bundle + 1 < items.bundles && unit + 1 < p.group_units) return;
        if (!items.has_all(group)) {
            float4* const to = partial(p, group, items.sharer(group)) + threadIdx.x % 32;
            for (uint32_t u = 0; u < p.group_units; ++u) to[u * 32] = load_of_head(u);
            if (!last_of_group(p, items, group)) return;
            for (uint32_t u = 0; u < p.group_units; ++u)
                store_of_head(u, total(p, items, group, u));
        }
        __syncwarp();
        place_head(p, group, b_.sums());
        __syncwarp();
    }

    // A lane's sums of a unit of a head: [row][token].
    __device__ float2* place_in_head(uint32_t unit) const {
        return reinterpret_cast<float2*>(b_.sums() + unit * kUnitSums + element_row() * kTokens +
                                         element_token());
    }
    __device__ void store_of_head(uint32_t unit, const float4& sum) const {
        float2* const to = place_in_head(unit);
        to[0] = {sum.x, sum.y};
        to[kTokens / 2] = {sum.z, sum.w};
    }
    __device__ float4 load_of_head(uint32_t unit) const {
        const float2* const from = place_in_head(unit);
        return {from[0].x, from[0].y, from[kTokens / 2].x, from[kTokens / 2].y};
    }

    // Whether this block is the last to have written its part of the group; the others' are seen
    // then. By a warp.
    __device__ bool last_of_group(const Phase& p, const Items& items, uint32_t group) const {
        bool last = false;
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            last = arrive_last(&net_.arrivals[p.counters + group], items.sharers(group));
        return __shfl_sync(~0u, last, 0);
    }

    // What all blocks have of a unit, in the order of columns.
    __device__ float4 total(const Phase& p, const Items& items, uint32_t group,
                            uint32_t unit) const {
        const float4* from = partial(p, group, 0) + unit * 32 + threadIdx.x % 32;
        const uint32_t sharers = items.sharers(group);
        float4 sum{};
#pragma unroll 4
        for (uint32_t part = 0; part < sharers; ++part, from += p.group_units * 32)
            sum = plus(sum, *from);
        return sum;
    }

    __device__ float4* partial(const Phase& p, uint32_t group, uint32_t piece) const {
        return reinterpret_cast<float4*>(net_.partials + p.partials) +
               (uint64_t{group} * p.pieces_max + piece) * p.group_units * 32;
    }
};

}  // namespace tessera::gpu
