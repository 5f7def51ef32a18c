// What a phase multiplies with, in shared memory, and which experts it needs: by all consumers of a
// block.
#pragma once

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
    // once. A row's squares are added up by column, lane and warp.
    __device__ void normalize(const Phase& p) {
        const bool context = p.norm == kNormContext;
        const uint32_t rows = context ? step_.context_rows : step_.rows, width = net_.hidden;
        const uint16_t* const from = context ? net_.fused : net_.residual;
        stride_ = activation_stride(width);
        uint16_t* const out = b_.activations();
        float sums[kTokens] = {};
        const uint32_t padded = (width + 127) / 128 * 128;
        constexpr uint32_t kStep = kConsumerThreads * 8,
                           kTogether = 2;  // loads are in flight together
        // Gains come with the rows, or they would be waited for after them.
        for (uint32_t at = threadIdx.x * 8; at < width; at += kStep)
            ask_ahead(p.gains != nullptr ? static_cast<const void*>(p.gains + at) : p.gain + at);
#pragma unroll 1
        for (uint32_t at = threadIdx.x * 8; at < padded; at += kTogether * kStep) {
            Eight values[kTogether][kTokens];
#pragma unroll
            for (uint32_t i = 0; i < kTogether; ++i)
#pragma unroll
                for (uint32_t row = 0; row < kTokens; ++row)
                    values[i][row] = row < rows && at + i * kStep < width
                                         ? Eight::load(from + row * width + at + i * kStep)
                                         : Eight{};
#pragma unroll
            for (uint32_t i = 0; i < kTogether; ++i) {
                if (at + i * kStep >= padded) break;
#pragma unroll
                for (uint32_t row = 0; row < kTokens; ++row) {
                    values[i][row].store(out + row * stride_ + at + i * kStep);
                    sums[row] += values[i][row].squares();
                }
            }
        }
        const float squares = sum_by_row(sums);
        if (threadIdx.x % 4 == 0)
            b_.deposits()[warp_ * kTokens + threadIdx.x % 32 / 4] = squares;  // free between phases
        if (p.gains != nullptr) {
            scale_rows<Eight>(p, p.gains, rows, width);
        } else {
            scale_rows<FloatGains>(p, p.gain, rows, width);
        }
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

    // What normalize has left in shared memory, by its squares and the gains.
    template <typename Gains, typename Value>
    __device__ __forceinline__ void scale_rows(const Phase& p, const Value* gains, uint32_t rows,
                                               uint32_t width) {
        uint16_t* const out = b_.activations();
        // The gains of the first columns are on their way meanwhile.
        const auto ask = [&](uint32_t at) { return at < width ? Gains::ask(gains + at) : Gains{}; };
        Gains gain = ask(threadIdx.x * 8);
        // A thread's own columns: they need no barrier.
        for (uint32_t row = blockIdx.x; p.tap > 0 && row < rows; row += gridDim.x) keep_tap(p, row);
        sync_consumers();
        // Of row lane / 4, by four lanes; then every lane gets all rows'.
        float sum = 0;
#pragma unroll
        for (uint32_t i = 0; i < (kConsumers + 3) / 4; ++i) {
            const uint32_t warp = 4 * i + threadIdx.x % 4;
            if (warp < kConsumers) sum += b_.deposits()[warp * kTokens + threadIdx.x % 32 / 4];
        }
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float inverse = 1.0f / sqrtf(sum / static_cast<float>(width) + net_.epsilon);
        float inverses[kTokens];
#pragma unroll
        for (uint32_t row = 0; row < kTokens; ++row)
            inverses[row] = __shfl_sync(~0u, inverse, 4 * row);
#pragma unroll 1
        for (uint32_t at = threadIdx.x * 8; at < width; at += kConsumerThreads * 8) {
            const Gains own = gain.times(kActivationScale);
            gain = ask(at + kConsumerThreads * 8);
#pragma unroll
            for (uint32_t row = 0; row < kTokens; ++row) {
                uint16_t* const to = out + row * stride_ + at;
                Eight::load(to).normed(inverses[row], own).store(to);
            }
        }
    }

    // The stream as it is, for the drafter: by one block.
    __device__ void keep_tap(const Phase& p, uint32_t row) {
        uint16_t* const to = step_.taps[row];
        if (to == nullptr) return;
#pragma unroll 1
        for (uint32_t at = threadIdx.x * 8; at < net_.hidden; at += kConsumerThreads * 8)
            Eight::load(b_.activations() + row * stride_ + at)
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
        sync_consumers();
        if (threadIdx.x < sizeof(routing.pair) / 4)
            reinterpret_cast<uint32_t*>(routing.pair)[threadIdx.x] = ~0u;
        if (threadIdx.x < kRouteExperts / 32) routing.wanted[threadIdx.x] = 0;
        sync_consumers();
        if (warp_ < step_.rows)
            choose_experts(net_.scores + uint64_t{warp_} * net_.experts, p.vector, net_.experts,
                           net_.per_token, net_.normalize_top_k, net_.routed_scale, warp_, routing);
        sync_consumers();
        if (warp_ < step_.rows) fill_slots(warp_, net_.per_token, routing);
        sync_consumers();
        if (threadIdx.x > 0) return;
        arrive(b_.routed());
        if (blockIdx.x == 0) net_.live[p.layer] = routing.live;
    }
};

}  // namespace tessera::gpu
