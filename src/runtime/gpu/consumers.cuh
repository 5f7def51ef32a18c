// The consumers: eight warps that do a phase's work on their block's share, page by page. Between phases
// they wait for all blocks; within one they meet at the end of every unit, whose columns they have dealt
// out among themselves.
#pragma once

#include "runtime/gpu/attend.cuh"
#include "runtime/gpu/block.cuh"

namespace tessera::gpu {

class Consumers {
  public:
    // `base`: signals that the barrier had before this launch.
    __device__ Consumers(Block& block, uint64_t base)
        : b_(block),
          net_(block.net),
          step_(block.step()),
          warp_(threadIdx.x / 32),
          passed_(base),
          stride_(0) {}

    __device__ __forceinline__ void run(uint32_t begin, uint32_t end) {
        for (uint32_t i = begin; i < end; ++i) {
            const uint64_t arrived = stamp();
            // Of a launch's first phase the launch itself is the barrier.
            if (b_.phases[i].barrier && i > begin) all_blocks();
            const uint64_t began = stamp();
            phase(i);
            if (net_.stamps != nullptr && threadIdx.x == 0)
                net_.stamps[i * gridDim.x + blockIdx.x] = {arrived, began, now_ns()};
        }
    }

  private:
    __device__ uint64_t stamp() const {
        return net_.stamps != nullptr && threadIdx.x == 0 ? now_ns() : 0;
    }

    __device__ void all_blocks() {
        sync_consumers();
        passed_ += gridDim.x;
        if (threadIdx.x == 0) {
            signal(net_.barrier);
            wait(net_.barrier, passed_, b_.distress());
        }
        sync_consumers();
    }

    __device__ __forceinline__ void phase(uint32_t index) {
        const Phase& p = b_.phases[index];
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
        if (b_.fresh(index)) prepare(p);
        if (b_.routes(index)) route(index);
        sync_consumers();
        by_format(p.matrix.format, [&](auto format) {
            if (!p.moe) {
                matrix<format()>(p);
            } else if (p.op == Op::gate_up) {
                gate_up<format()>(p);
            } else {
                down<format()>(p);
            }
        });
        sync_consumers();  // shared memory is free for what follows
    }

    // ---------------------------------------------------------------- activations

    // Whatever the phase multiplies with, into shared memory: a warp for each row.
    __device__ void prepare(const Phase& p) {
        const uint32_t row = warp_;
        uint16_t* const all = b_.activations();
        const auto rows_of = [&](const uint16_t* from, uint32_t columns, uint32_t from_stride) {
            stride_ = activation_stride(columns);
            if (row < step_.rows) {
                copy_row(from + uint64_t{row} * from_stride, columns, all + row * stride_);
            } else {
                clear_row(columns, all + row * stride_);
            }
        };
        switch (p.op) {
            case Op::output: {
                const Heads& h = b_.heads(p);
                return rows_of(net_.mixed, h.heads * h.v_head_dim, h.heads * h.v_head_dim);
            }
            case Op::down:
                if (!p.moe) return rows_of(net_.gated, p.matrix.columns, net_.gated_columns);
                stride_ = activation_stride(p.matrix.columns);
                for (uint32_t pair = warp_; pair < step_.rows * net_.per_token; pair += kConsumers)
                    copy_row(net_.gated + uint64_t{pair} * net_.gated_columns, p.matrix.columns,
                             all + pair * stride_);
                return;
            case Op::fuse:
                stride_ = activation_stride(p.matrix.columns);
                if (row < step_.context_rows) {
                    copy_row(step_.context_taps[row], p.matrix.columns, all + row * stride_);
                } else {
                    clear_row(p.matrix.columns, all + row * stride_);
                }
                return;
            default:
                break;
        }
        const bool context = p.norm == kNormContext;
        stride_ = activation_stride(net_.hidden);
        uint16_t* const out = all + row * stride_;
        if (row >= (context ? step_.context_rows : step_.rows)) return clear_row(net_.hidden, out);
        // One block keeps a row's taps.
        uint16_t* tap = p.tap > 0 && blockIdx.x == row % gridDim.x ? step_.taps[row] : nullptr;
        if (tap != nullptr) tap += uint64_t{p.tap - 1u} * net_.hidden;
        norm_row((context ? net_.fused : net_.residual) + uint64_t{row} * net_.hidden, p.gain,
                 net_.hidden, net_.epsilon, out, tap);
    }

    __device__ void embed() {
        for (uint32_t row = blockIdx.x; row < step_.rows; row += gridDim.x) {
            const uint16_t* const from =
                net_.draft && row > 0
                    ? net_.mask
                    : net_.embedding + uint64_t{step_.tokens[row]} * net_.hidden;
            for (uint32_t i = threadIdx.x; i < net_.hidden; i += kConsumerThreads)
                net_.residual[uint64_t{row} * net_.hidden + i] = from[i];
        }
    }

    // Every block routes every row for itself: reading the scores takes as long as being told.
    __device__ void route(uint32_t index) {
        const Phase& p = b_.phases[index];
        Routing& routing = b_.routing();
        sync_consumers();
        if (threadIdx.x < kRouteExperts / 32) routing.wanted[threadIdx.x] = 0;
        sync_consumers();
        if (warp_ < step_.rows)
            choose_experts(net_.scores + uint64_t{warp_} * net_.experts, p.vector, net_.experts,
                           net_.per_token, net_.normalize_top_k, net_.routed_scale, warp_, routing);
        sync_consumers();
        if (warp_ == 0) {
            fill_slots(step_.rows, net_.per_token, routing);
            __syncwarp();
            if (threadIdx.x == 0) {
                arrive(b_.routed());
                if (blockIdx.x == 0) net_.live[p.layer] = routing.live;
            }
        }
    }

    // ---------------------------------------------------------------- matrices

    // Panels [begin, end) of a matrix with `panels` a unit, from pages. A warp takes every eighth
    // column of panels. done(unit) is called by kUnitThreads threads when a unit's sums, or all of them
    // that the run has, stand in sums()[unit % group_units].
    template <Format format, typename Done>
    __device__ void stream(uint32_t begin, uint32_t end, uint32_t panels, uint32_t group_units,
                           Done done) {
        const uint16_t* const token = b_.activations() + threadIdx.x % 32 / 4 * stride_;
        Sums sums;
        for (uint32_t flat = begin; flat < end;) {
            const uint32_t page_end = min(flat + kPagePanels<format>, end);
            b_.ring.wait_full(b_.place, b_.distress());
            const std::byte* const page = b_.ring.page(b_.place);
            for (uint32_t at = flat; at < page_end;) {
                const uint32_t unit = at / panels, start = unit * panels;
                const uint32_t until = min(page_end, start + panels) - start;
                uint32_t column = at - start;
                column += (warp_ - column) % kConsumers;
                for (; column < until; column += kConsumers)
                    multiply_panel<format>(page + (start + column - flat) * panel_bytes(format),
                                           token + column * kPanelColumns, sums);
                at = start + until;
                if (until == panels || at == end) {
                    finish_unit<format>(sums, unit % group_units);
                    if (threadIdx.x < kUnitThreads) done(unit);
                    sums = {};
                }
            }
            b_.let_go();
            flat = page_end;
        }
    }

    // The warps' sums of one unit are added up in the order of warps.
    template <Format format>
    __device__ void finish_unit(const Sums& sums, uint32_t slot) {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        float* const deposits = b_.deposits() + turn_ * kConsumers * kUnitThreads;
        turn_ ^= 1;
        auto* const mine = reinterpret_cast<float2*>(deposits + warp_ * kUnitThreads);
        mine[2 * g * 4 + q] = {sums.at[0], sums.at[1]};
        mine[(2 * g + 1) * 4 + q] = {sums.at[2], sums.at[3]};
        sync_consumers();
        if (threadIdx.x >= kUnitThreads) return;
        float sum = 0;
#pragma unroll
        for (uint32_t w = 0; w < kConsumers; ++w) sum += deposits[w * kUnitThreads + threadIdx.x];
        b_.sums()[slot * kUnitThreads + threadIdx.x] = sum * unscale(format);
    }

    // A matrix that every step needs. Groups that a block has alone are finished at once; those that it
    // shares, its first and its last, when all their sums lie in `partials`: by whoever comes last.
    template <Format format>
    __device__ void matrix(const Phase& p) {
        const Cut cut(p);
        const Range own = cut.range(blockIdx.x, gridDim.x);
        if (own.begin == own.end) return;
        const uint32_t none = ~0u;
        uint32_t shared[2] = {none, none};
        const uint32_t units = p.group_units;
        stream<format>(own.begin, own.end, cut.panels, units, [&](uint32_t unit) {
            const uint32_t group = unit / units;
            const uint32_t begin = group * cut.group, end = begin + cut.group;
            const bool whole = own.begin <= begin && end <= own.end;
            const bool last = (unit + 1) * cut.panels >= min(end, own.end);
            if (!last) return;
            if (whole) return epilogue(p, group);
            (shared[0] == none ? shared[0] : shared[1]) = group;
            const uint32_t piece = blockIdx.x - cut.blocks_of(group, gridDim.x).begin;
            float* const to = partial(p, group, piece);
            for (uint32_t u = 0; u < units; ++u) {
                const uint32_t first = begin + u * cut.panels;
                const bool has = first + cut.panels > own.begin && first < own.end;
                to[u * kUnitThreads] = has ? b_.sums()[u * kUnitThreads + threadIdx.x] : 0.0f;
            }
        });
        if (threadIdx.x >= kUnitThreads) return;
        sync_unit();
        if (threadIdx.x < 2) {
            const uint32_t group = threadIdx.x == 0 ? shared[0] : shared[1];
            if (group != none) {
                const Range blocks = cut.blocks_of(group, gridDim.x);
                b_.last()[threadIdx.x] =
                    arrive_last(&net_.arrivals[p.counters + group], blocks.end - blocks.begin);
            }
        }
        sync_unit();
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
            if (shared[i] == none || !b_.last()[i]) continue;
            const Range blocks = cut.blocks_of(shared[i], gridDim.x);
            for (uint32_t u = 0; u < units; ++u) {
                float sum = 0;
                for (uint32_t piece = 0; piece < blocks.end - blocks.begin; ++piece)
                    sum += partial(p, shared[i], piece)[u * kUnitThreads];
                b_.sums()[u * kUnitThreads + threadIdx.x] = sum;
            }
            epilogue(p, shared[i]);
        }
    }

    __device__ float* partial(const Phase& p, uint32_t group, uint32_t piece) const {
        return net_.partials + p.partials +
               (uint64_t{group} * p.pieces_max + piece) * p.group_units * kUnitThreads + threadIdx.x;
    }

    // ---------------------------------------------------------------- what becomes of sums

    // By kUnitThreads threads: thread r * 8 + t has row r of each unit, of token t.
    __device__ __forceinline__ void epilogue(const Phase& p, uint32_t group) {
        const uint32_t r = threadIdx.x / kTokens, t = threadIdx.x % kTokens;
        const float sum = b_.sums()[threadIdx.x];
        const uint32_t row = group * kUnitRows + r;  // of a matrix whose groups are single units
        switch (p.op) {
            case Op::qkv:
                sync_unit();
                if (r % 2 == 0 && row < p.matrix.rows && t < step_.rows)
                    place_projected(p, row, t, sum, b_.sums()[threadIdx.x + kTokens]);
                sync_unit();
                return;
            case Op::output:
            case Op::down:
                if (row < net_.hidden && t < step_.rows) keep(p.op, row, t, sum);
                return;
            case Op::fuse:
                if (row < net_.hidden && t < step_.context_rows) keep(p.op, row, t, sum);
                return;
            case Op::router:
                if (row < net_.experts && t < step_.rows)
                    net_.scores[uint64_t{t} * net_.experts + row] = sum;
                return;
            case Op::head:
                if (row < net_.vocab && t < step_.rows)
                    net_.logits[uint64_t{t} * net_.vocab + row] = sum;
                return;
            case Op::gate_up:
                if (row < p.matrix.rows / 2 && t < step_.rows)
                    net_.gated[uint64_t{t} * net_.gated_columns + row] =
                        static_cast<uint16_t>(gated(sum, b_.sums()[kUnitThreads + threadIdx.x]));
                return;
            case Op::query:
            case Op::keys:
                sync_unit();
                return place_head(p, group);
            default:
                return;
        }
    }

    // A sublayer's sum: onto the stream, or to the other ranks. Of `fuse` it is all of its row.
    __device__ void keep(Op op, uint32_t column, uint32_t t, float sum) {
        const uint64_t at = uint64_t{t} * net_.hidden + column;
        if (net_.ranks > 1) {
            const uint32_t slot = op == Op::output ? kPartialOutput
                                  : op == Op::down ? kPartialDown
                                                   : kPartialFuse;
            for (uint32_t rank = 0; rank < net_.ranks; ++rank) inbox(slot, rank)[at] = sum;
        } else if (op == Op::fuse) {
            net_.fused[at] = static_cast<uint16_t>(to_bf16_bits(sum));
        } else {
            add_residual(net_.residual + at, sum);
        }
    }

    __device__ float* inbox(uint32_t slot, uint32_t rank) const {
        return net_.inbox + uint64_t{slot * net_.ranks + rank} * kRowsMax * net_.hidden;
    }

    // The sum of all ranks' partials, in rank order.
    __device__ void exchange(const Phase& p) {
        const bool fuse = p.norm == kPartialFuse;
        const uint32_t rows = fuse ? step_.context_rows : step_.rows;
        const Range own = share_of(rows * net_.hidden, blockIdx.x, gridDim.x);
        const float share = net_.loop_back ? 1.0f / static_cast<float>(net_.ranks) : 1.0f;
        for (uint32_t i = own.begin + threadIdx.x; i < own.end; i += kConsumerThreads) {
            float sum = 0;
#pragma unroll 8
            for (uint32_t rank = 0; rank < net_.ranks; ++rank) sum += inbox(p.norm, rank)[i];
            sum *= share;
            if (fuse) {
                net_.fused[i] = static_cast<uint16_t>(to_bf16_bits(sum));
            } else {
                add_residual(net_.residual + i, sum);
            }
        }
    }

    // Rows `row` and `row` + 1 of the projection of token t: dims of one head, which turn together
    // where it turns.
    __device__ void place_projected(const Phase& p, uint32_t row, uint32_t t, float low, float high) {
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
        auto* const tile = reinterpret_cast<uint32_t*>(b_.cache_head(p, cache, row / h.head_dim)) +
                           uint64_t{at / kKeyTile} * (h.head_dim / 2 * kKeyTile);
        tile[dim / 2 * kKeyTile + at % kKeyTile] = turned(h, dim, angles, low, high);
    }

    __device__ void place_value(const Phase& p, const Heads& h, std::byte* cache, uint32_t row,
                                uint32_t position, float low, float high) const {
        const uint32_t dim = row % h.v_head_dim, at = position % p.cache.ring;
        auto* const values = reinterpret_cast<uint16_t*>(
            b_.cache_head(p, cache, row / h.v_head_dim) + p.cache.key_bytes(h));
        uint16_t* const to = values + (uint64_t{at / 2} * h.v_head_dim + dim) * 2 + at % 2;
        to[0] = static_cast<uint16_t>(to_bf16_bits(net_.value_scale * round_to_bf16(low)));
        to[2] = static_cast<uint16_t>(to_bf16_bits(net_.value_scale * round_to_bf16(high)));
    }

    // A whole head of a drafter's query or keys, normalised over its dims, of the block's rows or the
    // context's. By kUnitThreads threads; sums() has the head's dims, kTokens each.
    __device__ void place_head(const Phase& p, uint32_t head) {
        const Heads& h = b_.heads(p);
        const uint32_t r = threadIdx.x / kTokens, t = threadIdx.x % kTokens;
        const bool context = p.norm == kNormContext;
        const bool is_value = p.op == Op::keys && head >= h.kv_heads;
        float* const sums = b_.sums();
        float inverse = 1;
        if (!is_value) {
            float squares = 0;
            for (uint32_t d = r; d < h.head_dim; d += kUnitRows) {
                const float x = round_to_bf16(sums[d * kTokens + t]);
                squares += x * x;
            }
            squares += __shfl_xor_sync(~0u, squares, 8);
            squares += __shfl_xor_sync(~0u, squares, 16);
            // Where the first warp deposits next: nobody else writes there before it does.
            float* const of_warps = b_.deposits() + turn_ * kConsumers * kUnitThreads;
            if (threadIdx.x % 32 < kTokens) of_warps[warp_ * kTokens + t] = squares;
            sync_unit();
            squares = 0;
#pragma unroll
            for (uint32_t w = 0; w < kUnitThreads / 32; ++w) squares += of_warps[w * kTokens + t];
            inverse = 1.0f / sqrtf(squares / static_cast<float>(h.head_dim) + net_.epsilon);
        }
        const uint32_t rows = context ? step_.context_rows : step_.rows;
        const uint32_t dims = is_value ? h.v_head_dim : h.head_dim;
        for (uint32_t d = 2 * r; d < dims && t < rows; d += 2 * kUnitRows) {
            const uint32_t position =
                context ? step_.context_position + t : step_.positions[t];
            std::byte* const cache = step_.run[0].cache;
            float low = sums[d * kTokens + t], high = sums[(d + 1) * kTokens + t];
            if (is_value) {
                place_value(p, h, cache, (head - h.kv_heads) * dims + d, position, low, high);
                continue;
            }
            low = round_to_bf16(round_to_bf16(low) * inverse) * __ldg(p.vector + d);
            high = round_to_bf16(round_to_bf16(high) * inverse) * __ldg(p.vector + d + 1);
            const float* const angles = angles_of(h, position);
            if (p.op == Op::keys) {
                place_key(p, h, cache, head * dims + d, position, angles, low, high);
            } else {
                *reinterpret_cast<uint32_t*>(net_.query + uint64_t{t} * h.heads * dims +
                                             head * dims + d) = turned(h, d, angles, low, high);
            }
        }
        sync_unit();
    }

    // ---------------------------------------------------------------- experts

    // Pairs of units (gate, up) of the live experts. A pair has one block: where it is cut does not
    // depend on which experts live beside it.
    template <Format format>
    __device__ void gate_up(const Phase& p) {
        const Routing& routing = b_.routing();
        const uint32_t panels = p.matrix.panels(), pairs = p.matrix.units() / 2;
        const Range own = share_of(routing.live * pairs, blockIdx.x, gridDim.x);
        const uint32_t r = threadIdx.x / kTokens, t = threadIdx.x % kTokens;
        for (uint32_t i = own.begin; i < own.end; ++i) {
            const uint32_t slot = i / pairs, column = i % pairs * kUnitRows + r;
            stream<format>(0, 2 * panels, panels, 2, [&](uint32_t unit) {
                const uint32_t pair = routing.pair[slot][t];
                if (unit == 0 || pair == kNoPair) return;
                net_.gated[uint64_t{pair} * net_.gated_columns + column] =
                    static_cast<uint16_t>(gated(b_.sums()[threadIdx.x],
                                                b_.sums()[kUnitThreads + threadIdx.x]));
            });
        }
    }

    // The block's own rows of all live experts. A warp has whole (expert, unit)s, whose sums wait for
    // each other: a row adds its experts in ascending order, whichever others are live.
    template <Format format>
    __device__ void down(const Phase& p) {
        const Routing& routing = b_.routing();
        const uint32_t panels = p.matrix.panels();
        const Range units = share_of(p.matrix.units(), blockIdx.x, gridDim.x);
        const uint32_t own = units.end - units.begin, run = own * panels;
        if (run == 0) return;
        const uint32_t live = routing.live, rows = own * kUnitRows;
        const uint32_t together_runs = kPagePanels<format> / run;
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        Sums sums;
        for (uint32_t flat = 0; flat < live * run;) {
            const uint32_t page_end =
                together_runs > 0
                    ? min(flat + together_runs * run, live * run)
                    : min(flat + kPagePanels<format>, (flat / run + 1) * run);
            b_.ring.wait_full(b_.place, b_.distress());
            const std::byte* const page = b_.ring.page(b_.place);
            uint32_t item = flat / panels;
            item += (warp_ - item) % kConsumers;
            for (; item * panels < page_end; item += kConsumers) {
                const uint32_t slot = item / own;
                const uint32_t pair = routing.pair[slot][g];
                const uint16_t* const token =
                    pair == kNoPair ? nullptr : b_.activations() + pair * stride_;
                const uint32_t start = item * panels;
                const uint32_t until = min(start + panels, page_end);
                for (uint32_t at = max(start, flat); at < until; ++at)
                    multiply_panel<format>(page + (at - flat) * panel_bytes(format),
                                           token ? token + (at - start) * kPanelColumns : nullptr,
                                           sums);
                if (until != start + panels) continue;
                const uint32_t row = item % own * kUnitRows + 2 * g;
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    const uint32_t of = routing.pair[slot][2 * q + i % 2];
                    if (of != kNoPair)
                        b_.contributions()[of * rows + row + i / 2] = sums.at[i] * unscale(format);
                }
                sums = {};
            }
            b_.let_go();
            flat = page_end;
        }
        sync_consumers();
        for (uint32_t i = threadIdx.x; i < rows * step_.rows; i += kConsumerThreads) {
            const uint32_t t = i / rows, row = i % rows;
            float sum = 0;
            for (uint32_t c = 0; c < net_.per_token; ++c) {
                const uint32_t pair = routing.order[t * net_.per_token + c];
                sum = __fadd_rn(sum, __fmul_rn(routing.weight[pair],
                                               b_.contributions()[pair * rows + row]));
            }
            const uint32_t column = units.begin * kUnitRows + row;
            if (column < net_.hidden) keep(Op::down, column, t, sum);
        }
    }

    Block& b_;
    const Network& net_;
    const Step& step_;
    uint32_t warp_;
    uint64_t passed_;   // signals of the barrier that have been waited for
    uint32_t stride_;   // of the activations
    uint32_t turn_ = 0; // of the two places of deposits
};

}  // namespace tessera::gpu
