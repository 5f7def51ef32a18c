// What becomes of a matrix's sums: queries, keys and values, the stream, scores, logits.
#pragma once

#include "runtime/gpu/block.cuh"

namespace tessera::gpu {

// What every part of a consumer has.
class Worker {
  protected:
    __device__ explicit Worker(Block& block)
        : b_(block), net_(block.net), step_(block.step()), warp_(threadIdx.x / 32) {}

    Block& b_;
    const Network& net_;
    const Step& step_;
    uint32_t warp_;
    uint32_t stride_ = 0;  // of the activations
};

class Results : protected Worker {
  protected:
    using Worker::Worker;

    // A lane's four sums of a unit: rows element_row() and the next, of tokens element_token() and
    // the next; first both tokens of the row.
    __device__ static uint32_t element_row() { return threadIdx.x % 32 / 4 * 2; }
    __device__ static uint32_t element_token() { return threadIdx.x % 4 * 2; }

    // A group, by one warp. `slot`: of an expert. `second`: of up, where `first` is gate.
    __device__ __forceinline__ void epilogue(const Phase& p, const Items& items, uint32_t group,
                                             uint32_t slot, const float4& first,
                                             const float4& second) {
        const uint32_t row = group * kUnitRows + element_row();
        const uint32_t rows = p.op == Op::gate_up ? p.matrix.rows / 2 : p.matrix.rows;
        const uint32_t tokens = p.op == Op::fuse ? step_.context_rows : step_.rows;
        const bool has_low = row < rows, has_high = row + 1 < rows;
#pragma unroll 1
        for (uint32_t i = 0; i < 2; ++i) {
            const uint32_t t = element_token() + i;
            const float low = i == 0 ? first.x : first.y, high = i == 0 ? first.z : first.w;
            if (t >= tokens || !has_low) continue;
            switch (p.op) {
                case Op::qkv:
                    place_projected(p, row, t, low, high);
                    break;
                case Op::output:
                case Op::fuse:
                case Op::down: {
                    const uint32_t pair = p.moe ? b_.routing().pair[slot][t] : 0;
                    if (!p.moe) {
                        keep(p.op, row, t, low);
                        if (has_high) keep(p.op, row + 1, t, high);
                    } else if (pair != kNoPair) {
                        float* const to =
                            contribution(items.own, pair) + row - items.own.begin * kUnitRows;
                        to[0] = low;
                        to[1] = high;
                    }
                    break;
                }
                case Op::router:
                    net_.scores[t * net_.experts + row] = low;
                    if (has_high) net_.scores[t * net_.experts + row + 1] = high;
                    break;
                case Op::head:
                    net_.logits[t * net_.vocab + row] = low;
                    if (has_high) net_.logits[t * net_.vocab + row + 1] = high;
                    break;
                case Op::gate_up: {
                    const uint32_t to = p.moe ? b_.routing().pair[slot][t] : t;
                    if (to == kNoPair) break;
                    uint16_t* const gated_to = net_.gated + to * net_.gated_columns + row;
                    gated_to[0] = static_cast<uint16_t>(gated(low, i == 0 ? second.x : second.y));
                    if (has_high)
                        gated_to[1] =
                            static_cast<uint16_t>(gated(high, i == 0 ? second.z : second.w));
                    break;
                }
                default:
                    break;
            }
        }
    }

    // A sublayer's sum: onto the stream, or to the other ranks. Of `fuse` it is all of its row.
    __device__ void keep(Op op, uint32_t column, uint32_t t, float sum) {
        const uint64_t at = uint64_t{t} * net_.hidden + column;
        if (net_.ranks > 1) {
            const uint32_t slot = op == Op::output ? kPartialOutput
                                  : op == Op::down ? kPartialDown
                                                   : kPartialFuse;
            float* to = inbox(slot, 0) + at;
            const uint64_t apart = inbox(slot, 1) - inbox(slot, 0);
#pragma unroll 4
            for (uint32_t rank = 0; rank < net_.ranks; ++rank, to += apart) *to = sum;
        } else if (op == Op::fuse) {
            net_.fused[at] = static_cast<uint16_t>(to_bf16_bits(sum));
        } else {
            add_residual(net_.residual + at, sum);
        }
    }

    __device__ float* inbox(uint32_t slot, uint32_t rank) const {
        return net_.inbox + uint64_t{slot * net_.ranks + rank} * kRowsMax * net_.hidden;
    }

    // The sum of all ranks' partials, in rank order: pairs of columns are dealt out to blocks, a
    // warp has a row of them. It leaves the row's squares, of the block's columns, for the norm
    // that comes next, which would have to read all columns twice.
    __device__ void exchange(const Phase& p) {
        const bool fuse = p.norm == kPartialFuse;
        const uint32_t rows = fuse ? step_.context_rows : step_.rows, lane = lane_now();
        const Range own = share_of(net_.hidden / 2, blockIdx.x, gridDim.x);
        const uint64_t apart = (inbox(p.norm, 1) - inbox(p.norm, 0)) / 2;
        uint32_t* const to = reinterpret_cast<uint32_t*>(fuse ? net_.fused : net_.residual);
        for (uint32_t row = warp_; row < rows; row += kConsumers) {
            float squares = 0;
#pragma unroll 1
            for (uint32_t pair = own.begin + lane; pair < own.end; pair += 32) {
                const uint64_t at = uint64_t{row} * (net_.hidden / 2) + pair;
                const float2* from = reinterpret_cast<const float2*>(inbox(p.norm, 0)) + at;
                const uint32_t before = fuse ? 0u : to[at];
                float low = 0, high = 0;
#pragma unroll 8
                for (uint32_t rank = 0; rank < net_.ranks; ++rank, from += apart) {
                    const float2 part = *from;
                    low += part.x;
                    high += part.y;
                }
                low *= net_.share;
                high *= net_.share;
                const uint32_t now = fuse ? pack_bf16(low, high)
                                          : pack_bf16(low_half(before) + round_to_bf16(low),
                                                      high_half(before) + round_to_bf16(high));
                to[at] = now;
                squares += low_half(now) * low_half(now) + high_half(now) * high_half(now);
            }
            squares = warp_sum(squares);
            if (lane == 0) net_.squares[row * gridDim.x + blockIdx.x] = squares;
        }
    }

    // Rows `row` and `row` + 1 of the projection of token t: dims of one head, which turn together
    // where it turns.
    __device__ void place_projected(const Phase& p, uint32_t row, uint32_t t, float low,
                                    float high) {
        const Heads& h = b_.heads(p);
        const uint32_t q_rows = h.heads * h.head_dim, k_rows = h.kv_heads * h.head_dim;
        const uint32_t position = step_.positions[t];
        const float* const angles = angles_of(h, position);
        if (row < q_rows) {
            *reinterpret_cast<uint32_t*>(net_.query + uint64_t{t} * q_rows + row) =
                turned(h, row % h.head_dim, angles, low, high);
        } else if (row < q_rows + k_rows) {
            place_key(p, h, run_of(t).cache, row - q_rows, position, angles, low, high);
        } else {
            place_value(p, h, run_of(t).cache, row - q_rows - k_rows, position, low, high);
        }
    }

    __device__ const float* angles_of(const Heads& h, uint32_t position) const {
        return net_.angles + uint64_t{position} * net_.angle_columns + h.angles;
    }

    // The run of token t.
    __device__ const Run& run_of(uint32_t t) const {
        uint32_t i = 0;
        while (t >= step_.run[i].first + step_.run[i].rows) ++i;
        return step_.run[i];
    }

    // Dims `dim` and `dim` + 1 of a head, rounded before and after as the model stores them.
    __device__ static uint32_t turned(const Heads& h, uint32_t dim, const float* angles, float low,
                                      float high) {
        low = round_to_bf16(low);
        high = round_to_bf16(high);
        if (dim >= h.rotary_dims) return pack_bf16(low, high);
        const float2 angle = __ldg(reinterpret_cast<const float2*>(angles + dim));
        return pack_bf16(__fsub_rn(__fmul_rn(low, angle.x), __fmul_rn(high, angle.y)),
                         __fadd_rn(__fmul_rn(high, angle.x), __fmul_rn(low, angle.y)));
    }

    __device__ void place_key(const Phase& p, const Heads& h, std::byte* cache, uint32_t row,
                              uint32_t position, const float* angles, float low, float high) const {
        const uint32_t dim = row % h.head_dim, at = position % p.cache.ring;
        auto* const tile =
            reinterpret_cast<uint32_t*>(b_.cache_head(p, cache, divide(row, h.head_dim))) +
            uint64_t{at / kKeyTile} * (h.head_dim / 2 * kKeyTile);
        tile[dim / 2 * kKeyTile + at % kKeyTile] = turned(h, dim, angles, low, high);
    }

    __device__ void place_value(const Phase& p, const Heads& h, std::byte* cache, uint32_t row,
                                uint32_t position, float low, float high) const {
        const uint32_t dim = row % h.v_head_dim, at = position % p.cache.ring;
        auto* const values = reinterpret_cast<uint16_t*>(
            b_.cache_head(p, cache, divide(row, h.v_head_dim)) + p.cache.key_bytes(h));
        uint16_t* const to = values + (uint64_t{at / 2} * h.v_head_dim + dim) * 2 + at % 2;
        to[0] = static_cast<uint16_t>(to_bf16_bits(net_.value_scale * round_to_bf16(low)));
        to[2] = static_cast<uint16_t>(to_bf16_bits(net_.value_scale * round_to_bf16(high)));
    }

    // A whole head of a drafter's query or keys, normalised over its dims, of the block's rows or
    // the context's. By one warp, a quarter of it for each token in turn; `sums` has the head's
    // dims, kTokens each.
    __device__ void place_head(const Phase& p, uint32_t head, const float* sums) {
        const Heads& h = b_.heads(p);
        const uint32_t part = threadIdx.x % 32 / kTokens, t = threadIdx.x % kTokens;
        const bool context = p.norm == kNormContext;
        const bool is_value = p.op == Op::keys && head >= h.kv_heads;
        constexpr uint32_t kParts = 32 / kTokens;
        float inverse = 1;
        if (!is_value) {
            float squares = 0;
#pragma unroll 4
            for (uint32_t d = part; d < h.head_dim; d += kParts) {
                const float x = round_to_bf16(sums[d * kTokens + t]);
                squares += x * x;
            }
            squares += __shfl_xor_sync(~0u, squares, 8);
            squares += __shfl_xor_sync(~0u, squares, 16);
            inverse = inverse_root(squares, h.head_dim, net_.epsilon);
        }
        if (t >= (context ? step_.context_rows : step_.rows)) return;
        const uint32_t dims = is_value ? h.v_head_dim : h.head_dim;
        const uint32_t position = context ? step_.context_position + t : step_.positions[t];
        std::byte* const cache = step_.run[0].cache;
        const float* const angles = angles_of(h, position);
#pragma unroll 1
        for (uint32_t d = 2 * part; d < dims; d += 2 * kParts) {
            float low = sums[d * kTokens + t], high = sums[(d + 1) * kTokens + t];
            if (is_value) {
                place_value(p, h, cache, (head - h.kv_heads) * dims + d, position, low, high);
                continue;
            }
            low = round_to_bf16(round_to_bf16(low) * inverse) * __ldg(p.vector + d);
            high = round_to_bf16(round_to_bf16(high) * inverse) * __ldg(p.vector + d + 1);
            if (p.op == Op::keys) {
                place_key(p, h, cache, head * dims + d, position, angles, low, high);
            } else {
                *reinterpret_cast<uint32_t*>(net_.query + uint64_t{t} * h.heads * dims +
                                             head * dims + d) = turned(h, d, angles, low, high);
            }
        }
    }

    // What a token's choice of expert gives to the block's own rows, until all of its choices are
    // in.
    __device__ float* contribution(Range units, uint32_t pair) const {
        return b_.contributions() + pair * (units.end - units.begin) * kUnitRows;
    }

    // Of a unit that one warp has all columns of.
    __device__ void contribute(Range units, uint32_t slot, uint32_t unit, const TwoSums& sums,
                               float times) const {
        const uint32_t lane = lane_now(), row = (unit - units.begin) * kUnitRows + lane / 4 * 2;
#pragma unroll
        for (uint32_t token = 0; token < 2; ++token) {
            const uint32_t pair = b_.routing().pair[slot][lane % 4 * 2 + token];
            if (pair == kNoPair) continue;
            float* const to = contribution(units, pair) + row;
            *reinterpret_cast<float2*>(to) = {sums[token] * times, sums[2 + token] * times};
        }
    }

    // A row adds its experts in ascending order, whichever others are live.
    __device__ void add_experts(const Phase& p) {
        const Routing& routing = b_.routing();
        const Range units = share_of(p.matrix.units(), blockIdx.x, gridDim.x);
        const uint32_t rows = (units.end - units.begin) * kUnitRows;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < rows * step_.rows; i += kConsumerThreads) {
            const uint32_t t = divide(i, rows), row = i - t * rows;
            float sum = 0;
#pragma unroll 2
            for (uint32_t c = 0; c < net_.per_token; ++c) {
                const uint32_t pair = routing.order[t * net_.per_token + c];
                sum =
                    __fadd_rn(sum, __fmul_rn(routing.weight[pair], contribution(units, pair)[row]));
            }
            const uint32_t column = units.begin * kUnitRows + row;
            if (column < net_.hidden) keep(Op::down, column, t, sum);
        }
    }
};

}  // namespace tessera::gpu
