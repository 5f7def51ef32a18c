// The consumers: warps that do a phase's work on their block's share, page by page. Between phases they
// wait for all blocks; within one they wait for pages alone: a unit's panels are dealt out among them, and
// the last to be done with a unit adds up what all have of it.
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
          stride_(0) {
        if (threadIdx.x == 0) b_.counts().shared[0] = b_.counts().shared[1] = kNone;
    }

    // What a phase is lies in shared memory before it begins: its words are asked for one phase ahead.
    __device__ __forceinline__ void run(uint32_t begin, uint32_t end) {
        uint32_t word = word_of(begin);
        for (uint32_t i = begin; i < end; ++i) {
            if (threadIdx.x < kPhaseWords)
                reinterpret_cast<uint32_t*>(&b_.phase(i))[threadIdx.x] = word;
            if (i + 1 < end) word = word_of(i + 1);
            const uint64_t arrived = stamp();
            sync_consumers();
            // Of a launch's first phase the launch itself is the barrier.
            if (b_.phase(i).barrier && i > begin) all_blocks();
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

    static constexpr uint32_t kPhaseWords = sizeof(Phase) / 4;
    __device__ uint32_t word_of(uint32_t phase) const {
        return threadIdx.x < kPhaseWords
                   ? reinterpret_cast<const uint32_t*>(&b_.phases[phase])[threadIdx.x]
                   : 0;
    }

    // After sync_consumers.
    __device__ void all_blocks() {
        passed_ += gridDim.x;
        if (threadIdx.x == 0) {
            signal(net_.barrier);
            wait(net_.barrier, passed_, b_.distress());
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
        if (p.moe && p.op == Op::down) {
            down(p);
        } else {
            matrix(p);
        }
        sync_consumers();  // shared memory is free for what follows
    }

    // ---------------------------------------------------------------- activations

    // Whatever the phase multiplies with, into shared memory: rows as they are, or the stream's, normalised.
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
            rows, p.moe ? rows : kTokens, columns, b_.activations(), stride_, threadIdx.x,
            kConsumerThreads);
    }

    // All rows at once: a thread has the same columns of every row, so that it asks for the gains once.
    // A row's squares are added up by column, lane and warp.
    __device__ void normalize(const Phase& p) {
        const bool context = p.norm == kNormContext;
        const uint32_t rows = context ? step_.context_rows : step_.rows, width = net_.hidden;
        const uint16_t* const from = context ? net_.fused : net_.residual;
        stride_ = activation_stride(width);
        uint16_t* const out = b_.activations();
        float squares[kTokens] = {};
#pragma unroll 1
        for (uint32_t at = threadIdx.x * 8; at < (width + 127) / 128 * 128; at += kConsumerThreads * 8) {
#pragma unroll
            for (uint32_t row = 0; row < kTokens; ++row) {
                const Eight value = row < rows && at < width
                                        ? Eight::load(from + uint64_t{row} * width + at)
                                        : Eight{};
                value.store(out + row * stride_ + at);
                squares[row] += value.squares();
            }
        }
        float* const of_warps = b_.deposits();  // free between phases
#pragma unroll
        for (uint32_t row = 0; row < kTokens; ++row) {
            squares[row] = warp_sum(squares[row]);
            if (threadIdx.x % 32 == 0) of_warps[row * kConsumers + warp_] = squares[row];
        }
        sync_consumers();
        if (threadIdx.x < kTokens) {
            float sum = 0;
            for (uint32_t w = 0; w < kConsumers; ++w) sum += of_warps[threadIdx.x * kConsumers + w];
            of_warps[kTokens * kConsumers + threadIdx.x] =
                1.0f / sqrtf(sum / static_cast<float>(width) + net_.epsilon);
        }
        sync_consumers();
        float inverse[kTokens];
#pragma unroll
        for (uint32_t row = 0; row < kTokens; ++row) inverse[row] = of_warps[kTokens * kConsumers + row];
#pragma unroll 1
        for (uint32_t at = threadIdx.x * 8; at < width; at += kConsumerThreads * 8) {
            const float4 a = __ldg(reinterpret_cast<const float4*>(p.gain + at));
            const float4 b = __ldg(reinterpret_cast<const float4*>(p.gain + at + 4));
            const float gain[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
            for (uint32_t row = 0; row < kTokens; ++row) {
                uint16_t* const to = out + row * stride_ + at;
                const Eight value = Eight::load(to);
                // One block keeps a row's taps.
                if (p.tap > 0 && blockIdx.x == row % gridDim.x && row < rows &&
                    step_.taps[row] != nullptr)
                    value.store(step_.taps[row] + (p.tap - 1u) * width + at);
                value.normed(inverse[row], gain).store(to);
            }
        }
    }

    __device__ void embed() {
        for (uint32_t row = blockIdx.x; row < step_.rows; row += gridDim.x) {
            const uint16_t* const from =
                net_.draft && row > 0
                    ? net_.mask
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

    // Which panels of which matrix a block streams: a run of a matrix that every step needs, or pairs of
    // units (gate, up) of the live experts. A pair has one block: where it is cut does not depend on which
    // experts live beside it.
    __device__ void matrix(const Phase& p) {
        const Cut cut(p);
        const uint32_t pairs = p.groups();
        Range own = p.moe ? share_of(b_.routing().live * pairs, blockIdx.x, gridDim.x)
                          : cut.range(blockIdx.x, gridDim.x);
        if (own.begin == own.end) return;
        const Range all = own;
        for (uint32_t i = all.begin; i < (p.moe ? all.end : all.begin + 1); ++i) {
            if (p.moe) own = {i % pairs * cut.group, (i % pairs + 1) * cut.group};
            stream(p, cut, own, p.moe ? i / pairs : 0);
        }
        if (!p.moe) finish_shared(p, cut);
    }

    // Panels of a matrix, from pages. Panel i is warp i % kConsumers's, whichever run it is met in. No warp
    // waits for another: where a unit ends each leaves its sums, and the last to do so adds them up.
    __device__ void stream(const Phase& p, const Cut& cut, Range own, uint32_t slot) {
        const uint16_t* const token = b_.activations() + threadIdx.x % 32 / 4 * stride_;
        // Waits make the compiler read memory anew: what the loop needs lies in registers.
        const uint32_t page_panels = p.page_panels, panel_bytes = p.panel_bytes;
        const Format format = p.matrix.format;
        TwoSums sums;
        uint32_t unit = own.begin / cut.panels, start = unit * cut.panels;  // that `at` is in
        uint32_t mine = own.begin + (warp_ + kConsumers - own.begin % kConsumers) % kConsumers;
        for (uint32_t flat = own.begin; flat < own.end;) {
            const uint32_t page_end = min(flat + page_panels, own.end);
            b_.ring.wait_full(b_.place, b_.distress());
            const std::byte* const page = b_.ring.page(b_.place);
            for (uint32_t at = flat; at < page_end;) {
                const uint32_t until = min(page_end, start + cut.panels);
                if (mine < until) {
                    // Counted from the unit's first panel, which may lie before this page.
                    multiply_panels(format, page - (flat - start) * panel_bytes, token,
                                    mine - start, until - start, kConsumers, sums);
                    mine += (until - mine + kConsumers - 1) / kConsumers * kConsumers;
                }
                at = until;
                if (until == start + cut.panels || until == own.end) {
                    finish_unit(p, cut, own, sums, unit, slot);
                    sums = {};
                    start += cut.panels;
                    ++unit;
                }
            }
            b_.let_go();
            flat = page_end;
        }
    }

    // While one warp adds up a unit no later unit can be finished, since that takes this warp too: so
    // there is one that adds up at a time, and a slot is free when the unit kDepositSlots before is done.
    __device__ void finish_unit(const Phase& p, const Cut& cut, Range own, const TwoSums& sums,
                                uint32_t unit, uint32_t slot) {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        const uint32_t place = units_ % kDepositSlots;
        Counts& counts = b_.counts();
        if (units_ >= kDepositSlots)
            wait_in_block(&counts.finished, units_ - kDepositSlots + 1, b_.distress());
        float* const deposits = b_.deposits() + place * kConsumers * kUnitSums;
        auto* const mine = reinterpret_cast<float2*>(deposits + warp_ * kUnitSums);
        mine[2 * g * 4 + q] = {sums[0], sums[1]};
        mine[(2 * g + 1) * 4 + q] = {sums[2], sums[3]};
        ++units_;
        __syncwarp();
        bool last = false;
        if (lane == 0) last = warp_arrives_last(&counts.deposited[place], kConsumers);
        if (!__shfl_sync(~0u, last, 0)) return;
        // In the order of warps.
        float4 sum{};
#pragma unroll
        for (uint32_t w = 0; w < kConsumers; ++w) {
            const float4 more = reinterpret_cast<const float4*>(deposits + w * kUnitSums)[lane];
            sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
        }
        const float times = unscale(p.matrix.format);
        const uint32_t group = unit / p.group_units;
        float* const all = b_.sums() + group % kDepositSlots * p.group_units * kUnitSums;
        reinterpret_cast<float4*>(all + unit % p.group_units * kUnitSums)[lane] = {
            sum.x * times, sum.y * times, sum.z * times, sum.w * times};
        __syncwarp();
        const uint32_t end = (group + 1) * cut.group;
        if ((unit + 1) * cut.panels >= min(end, own.end)) {  // else more of the group will come
            if (own.begin <= end - cut.group && end <= own.end) {
                epilogue(p, group, all, slot);
            } else {
                leave(p, cut, own, group, all);
            }
        }
        __syncwarp();
        if (lane == 0) publish_in_block(&counts.finished, units_);
    }

    // A group that other blocks have pieces of, too: the block's first, or its last. What the block has of
    // it goes to `partials`.
    __device__ void leave(const Phase& p, const Cut& cut, Range own, uint32_t group, const float* sums) {
        const uint32_t begin = group * cut.group, lane = threadIdx.x % 32;
        if (lane == 0) b_.counts().shared[begin < own.begin ? 0 : 1] = group;
        float* const to = partial(p, group, cut.sharer(group, blockIdx.x, gridDim.x));
#pragma unroll 1
        for (uint32_t u = 0; u < p.group_units; ++u) {
            const uint32_t first = begin + u * cut.panels;
            const bool has = first + cut.panels > own.begin && first < own.end;
            reinterpret_cast<float4*>(to + u * kUnitSums)[lane] =
                has ? reinterpret_cast<const float4*>(sums + u * kUnitSums)[lane] : float4{};
        }
    }

    // Whoever comes last to a group adds up its pieces, in the order of columns. A warp for each of the
    // block's two.
    __device__ void finish_shared(const Phase& p, const Cut& cut) {
        sync_consumers();
        if (warp_ >= 2) return;
        const uint32_t group = b_.counts().shared[warp_], lane = threadIdx.x % 32;
        __syncwarp();
        if (group == kNone) return;
        const uint32_t sharers = cut.sharers(group, gridDim.x);
        bool last = false;
        if (lane == 0) {
            b_.counts().shared[warp_] = kNone;
            last = arrive_last(&net_.arrivals[p.counters + group], sharers);
        }
        if (!__shfl_sync(~0u, last, 0)) return;
        float* const sums = b_.sums() + warp_ * p.group_units * kUnitSums;
#pragma unroll 1
        for (uint32_t i = lane; i < p.group_units * kUnitSums / 4; i += 32) {
            float4 sum{};
#pragma unroll 4
            for (uint32_t piece = 0; piece < sharers; ++piece) {
                const float4 more = reinterpret_cast<const float4*>(partial(p, group, piece))[i];
                sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
            }
            reinterpret_cast<float4*>(sums)[i] = sum;
        }
        __syncwarp();
        epilogue(p, group, sums, 0);
    }

    __device__ float* partial(const Phase& p, uint32_t group, uint32_t piece) const {
        return net_.partials + p.partials +
               (uint64_t{group} * p.pieces_max + piece) * p.group_units * kUnitSums;
    }

    // ---------------------------------------------------------------- what becomes of sums

    // By one warp: `sums` has row r of token t of the group's units at [unit][r][t]. `slot`: of an expert.
    __device__ void epilogue(const Phase& p, uint32_t group, const float* sums, uint32_t slot) {
        if (p.op == Op::query || p.op == Op::keys) return place_head(p, group, sums);
        const uint32_t rows = p.op == Op::fuse ? step_.context_rows : step_.rows;
#pragma unroll 1
        for (uint32_t i = threadIdx.x % 32; i < kUnitSums; i += 32) {
            const uint32_t r = i / kTokens, t = i % kTokens;
            const uint32_t row = group * kUnitRows + r;  // where a group is one unit
            const float sum = sums[i];
            if (t >= rows || row >= p.matrix.rows) continue;
            switch (p.op) {
                case Op::qkv:
                    if (r % 2 == 0) place_projected(p, row, t, sum, sums[i + kTokens]);
                    break;
                case Op::output:
                case Op::down:
                case Op::fuse:
                    keep(p.op, row, t, sum);
                    break;
                case Op::router:
                    net_.scores[t * net_.experts + row] = sum;
                    break;
                case Op::head:
                    net_.logits[t * net_.vocab + row] = sum;
                    break;
                case Op::gate_up: {
                    const uint32_t to = p.moe ? b_.routing().pair[slot][t] : t;
                    if (to != kNoPair && row < p.matrix.rows / 2)
                        net_.gated[to * net_.gated_columns + row] =
                            static_cast<uint16_t>(gated(sum, sums[kUnitSums + i]));
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
#pragma unroll 1
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
    // context's. By one warp, a quarter of it for each token in turn; `sums` has the head's dims, kTokens
    // each.
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
            inverse = 1.0f / sqrtf(squares / static_cast<float>(h.head_dim) + net_.epsilon);
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

    // ---------------------------------------------------------------- experts

    // The block's own rows of all live experts. A warp has whole (expert, unit)s, whose sums wait for
    // each other: a row adds its experts in ascending order, whichever others are live.
    __device__ void down(const Phase& p) {
        const Routing& routing = b_.routing();
        const uint32_t panels = p.matrix.panels();
        const Range units = share_of(p.matrix.units(), blockIdx.x, gridDim.x);
        const uint32_t own = units.end - units.begin, run = own * panels;
        if (run == 0) return;
        const uint32_t live = routing.live, rows = own * kUnitRows;
        const uint32_t page_panels = p.page_panels, together = page_panels / run;
        const auto panel_bytes = static_cast<int32_t>(p.panel_bytes);
        const Format format = p.matrix.format;
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        const float times = unscale(format);
        TwoSums sums;
        for (uint32_t flat = 0; flat < live * run;) {
            const uint32_t page_end = together > 0 ? min(flat + together * run, live * run)
                                                   : min(flat + page_panels, (flat / run + 1) * run);
            b_.ring.wait_full(b_.place, b_.distress());
            const std::byte* const page = b_.ring.page(b_.place);
            uint32_t item = flat / panels;
            item += (warp_ + kConsumers - item % kConsumers) % kConsumers;
            for (; item * panels < page_end; item += kConsumers) {
                const uint32_t slot = item / own;
                const uint32_t pair = routing.pair[slot][g];
                const uint16_t* const token =
                    pair == kNoPair ? nullptr : b_.activations() + pair * stride_;
                const uint32_t start = item * panels;
                const uint32_t until = min(start + panels, page_end);
                multiply_panels(format, page + static_cast<int32_t>(start - flat) * panel_bytes, token,
                                max(start, flat) - start, until - start, 1, sums);
                if (until != start + panels) continue;
                const uint32_t row = item % own * kUnitRows + 2 * g;
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    const uint32_t of = routing.pair[slot][2 * q + i % 2];
                    if (of != kNoPair) b_.contributions()[of * rows + row + i / 2] = sums[i] * times;
                }
                sums = {};
            }
            b_.let_go();
            flat = page_end;
        }
        sync_consumers();
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < rows * step_.rows; i += kConsumerThreads) {
            const uint32_t t = i / rows, row = i % rows;
            float sum = 0;
#pragma unroll 4
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
    uint64_t passed_;     // signals of the barrier that have been waited for
    uint32_t stride_;     // of the activations
    uint32_t units_ = 0;  // that this warp has finished, since the launch
};

}  // namespace tessera::gpu
