// What a phase multiplies with, in shared memory, and which experts it needs: by all consumers of a
// block.
#pragma once

#include <type_traits>

#include "runtime/gpu/results.cuh"

namespace tessera::gpu {

class Activations : protected Results {
  protected:
    using Results::Results;

    // Whatever the phase multiplies with, into shared memory: rows as they are, or the stream's,
    // normalised.
    __device__ void prepare(const Phase& p) {
        if (p.op != Op::output && p.op != Op::down && p.op != Op::fuse) return normalize(p);
        const uint32_t columns = p.matrix.columns;
        // Of experts: a row for each pair of a token and one of its choices.
        const uint32_t rows = p.op == Op::fuse ? step_.context_rows
                              : p.moe          ? step_.rows * net_.per_token
                                               : step_.rows;
        const uint16_t* const from = p.op == Op::output ? net_.mixed : net_.gated;
        const uint32_t from_stride = p.op == Op::output ? columns : net_.gated_columns;
        stride_ = activation_stride(columns);
        copy_rows(
            [&](uint32_t row) {
                return p.op == Op::fuse ? step_.context_taps[row] : from + row * from_stride;
            },
            rows, p.moe ? rows + 1 : kTokens, columns, b_.activations(), stride_, kActivationScale,
            threadIdx.x, kConsumerThreads);
    }

    // All rows at once: a thread has the same columns of every row, so that it asks for the gains
    // once.
    __device__ void normalize(const Phase& p) {
        if (p.gains != nullptr) {
            normalize<Eight>(p, p.gains);
        } else {
            normalize<FloatGains>(p, p.gain);
        }
    }

    template <typename Gains, typename Value>
    __device__ __forceinline__ void normalize(const Phase& p, const Value* gains) {
        const bool context = p.norm == kNormContext;
        const uint32_t rows = context ? step_.context_rows : step_.rows, width = net_.hidden;
        const uint16_t* const from = context ? net_.fused : net_.residual;
        stride_ = activation_stride(width);
        const uint32_t padded = (width + 127) / 128 * 128;
        // Columns whose loads are in flight together: two take more registers than there are where
        // gains are floats.
        constexpr uint32_t kStep = kConsumerThreads * 8,
                           kTogether = std::is_same_v<Gains, Eight> ? 2 : 1;
        for (uint32_t row = blockIdx.x; p.tap > 0 && row < rows; row += gridDim.x) keep_tap(p, row);
        if (!p.summed) {
            sum_squares(from, rows, width);
        } else if (warp_ < rows && lane_now() * 32 < gridDim.x) {
            // Before the rows, behind which they would come last.
            ask_ahead(net_.squares + warp_ * gridDim.x + lane_now() * 32);
        }
        uint16_t* const out = b_.activations();
        // All threads' first turn, whether they have columns or not: they meet in it.
        uint32_t at = threadIdx.x * 8;
#pragma unroll 1
        do {
            Eight values[kTogether][kTokens];
#pragma unroll
            for (uint32_t i = 0; i < kTogether; ++i) {
                const uint32_t column = at + i * kStep;
                // For when the rows are there: in registers they would be too many.
                if (column < width) ask_ahead(gains + column);
#pragma unroll
                for (uint32_t row = 0; row < kTokens; ++row)
                    values[i][row] = row < rows && column < width
                                         ? Eight::load(from + row * width + column)
                                         : Eight{};
            }
            if (at < kStep) invert_roots(p.summed, rows, width);
#pragma unroll
            for (uint32_t i = 0; i < kTogether; ++i) {
                const uint32_t column = at + i * kStep;
                if (column >= padded) break;
                const Gains own =
                    column < width ? Gains::ask(gains + column).times(kActivationScale) : Gains{};
#pragma unroll
                for (uint32_t row = 0; row < kTokens; ++row)
                    values[i][row].normed(inverses()[row], own).store(out + row * stride_ + column);
            }
            at += kTogether * kStep;
        } while (at < padded);
    }

    // Of rows that nobody has summed yet: every warp's share of a row's squares, [warp][row] of the
    // deposits, which are free between phases.
    __device__ void sum_squares(const uint16_t* from, uint32_t rows, uint32_t width) {
        float sums[kTokens] = {};
#pragma unroll 1
        for (uint32_t at = threadIdx.x * 8; at < width; at += kConsumerThreads * 8) {
#pragma unroll
            for (uint32_t row = 0; row < kTokens; ++row)
                if (row < rows) sums[row] += Eight::load(from + row * width + at).squares();
        }
        const float squares = sum_by_row(sums);
        if (threadIdx.x % 4 == 0) b_.deposits()[warp_ * kTokens + threadIdx.x % 32 / 4] = squares;
        sync_consumers();
    }

    // One over the root of each row's mean square: behind warps' shares of them.
    __device__ float* inverses() const {
        return b_.deposits() + kConsumers * kTokens;
    }

    // A warp a row adds up what blocks (summed) or warps have of it, in their order.
    __device__ __forceinline__ void invert_roots(bool summed, uint32_t rows, uint32_t width) {
        static_assert(kConsumers >= kTokens);
        if (warp_ < kTokens) {
            const uint32_t lane = lane_now();
            float sum = 0;
            if (warp_ < rows) {
                const float* const of =
                    summed ? net_.squares + warp_ * gridDim.x : b_.deposits() + warp_;
                const uint32_t count = summed ? gridDim.x : kConsumers;
                const uint32_t apart = summed ? 1 : kTokens;
                // More at once are registers that the rows have.
                constexpr uint32_t kTogether = 2;
#pragma unroll 1
                for (uint32_t first = lane; first < count; first += 32 * kTogether) {
                    float some[kTogether];
#pragma unroll
                    for (uint32_t i = 0; i < kTogether; ++i)
                        some[i] = first + 32 * i < count ? of[(first + 32 * i) * apart] : 0.0f;
#pragma unroll
                    for (uint32_t i = 0; i < kTogether; ++i) sum += some[i];
                }
            }
            sum = warp_sum(sum);
            if (lane == 0)
                inverses()[warp_] = warp_ < rows ? inverse_root(sum, width, net_.epsilon) : 0.0f;
        }
        sync_consumers();
    }

    // Of eight rows' numbers in every lane, the sums over a warp: row lane / 4's to that lane.
    __device__ static float sum_by_row(const float (&of)[kTokens]) {
        float rows[kTokens];
#pragma unroll
        for (uint32_t row = 0; row < kTokens; ++row) rows[row] = of[row];
#pragma unroll
        for (uint32_t half = kTokens / 2; half > 0; half /= 2) {
            const uint32_t away = half * 4;  // whose lanes have the other half of the rows
            const bool upper = (threadIdx.x & away) != 0;
#pragma unroll
            for (uint32_t i = 0; i < half; ++i) {
                const float given = upper ? rows[i] : rows[i + half];
                rows[i] = (upper ? rows[i + half] : rows[i]) + __shfl_xor_sync(~0u, given, away);
            }
        }
        rows[0] += __shfl_xor_sync(~0u, rows[0], 2);
        rows[0] += __shfl_xor_sync(~0u, rows[0], 1);
        return rows[0];
    }

    // The stream as it is, for the drafter: by one block.
    __device__ void keep_tap(const Phase& p, uint32_t row) {
        uint16_t* const to = step_.taps[row];
        if (to == nullptr) return;
#pragma unroll 1
        for (uint32_t at = threadIdx.x * 8; at < net_.hidden; at += kConsumerThreads * 8)
            Eight::load(net_.residual + row * net_.hidden + at)
                .store(to + (p.tap - 1u) * net_.hidden + at);
    }

    __device__ void embed() {
        for (uint32_t row = blockIdx.x; row < step_.rows; row += gridDim.x) {
            const uint16_t* const from =
                net_.draft && row > 0 ? net_.mask
                                      : net_.embedding + uint64_t{step_.tokens[row]} * net_.hidden;
#pragma unroll 1
            for (uint32_t i = threadIdx.x; i < net_.hidden; i += kConsumerThreads)
                net_.residual[uint64_t{row} * net_.hidden + i] = from[i];
        }
    }

    // Every block routes every row for itself: reading the scores takes as long as being told.
    __device__ void route(const Phase& p) {
        Routing& routing = b_.routing();
        if (threadIdx.x < sizeof(routing.pair) / 4)
            reinterpret_cast<uint32_t*>(routing.pair)[threadIdx.x] = ~0u;
        if (threadIdx.x < kRouteExperts / 32) routing.wanted[threadIdx.x] = 0;
        // On their way before the barrier; warps without a row have the last one's.
        RowScores scores(net_.scores + uint64_t{min(warp_, step_.rows - 1)} * net_.experts,
                         p.vector, net_.experts);
        sync_consumers();
        if (warp_ < step_.rows)
            choose_experts(scores, net_.experts, net_.per_token, net_.normalize_top_k,
                           net_.routed_scale, warp_, routing);
        sync_consumers();
        if (warp_ < step_.rows) fill_slots(warp_, net_.per_token, routing);
        sync_consumers();
        if (b_.every_lane || threadIdx.x == 0) arrive(b_.routed());
        if (threadIdx.x == 0 && blockIdx.x == 0) net_.live[p.layer] = routing.live;
    }
};

}  // namespace tessera::gpu
