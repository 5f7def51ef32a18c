// The consumers: warps that do a phase's work on their block's share, page by page. Between phases
// they wait for all blocks; within one they wait for pages alone: a unit's panels are dealt out
// among them, and the last to be done with a unit adds up what all have of it.
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

    // What a phase is lies in shared memory before it begins: its words are asked for one phase
    // ahead.
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
                net_.stamps[i * gridDim.x + blockIdx.x] = {arrived, began, prepared_, streamed_,
                                                           now_ns()};
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
        if (threadIdx.x < kDepositSlots)
            b_.counts().added[threadIdx.x] = b_.counts().finished[threadIdx.x] = 0;
        sync_consumers();
        prepared_ = stamp();
        matrix(p);
        if (p.moe && p.op == Op::down) {
            sync_consumers();
            add_experts(p);
        }
        sync_consumers();  // shared memory is free for what follows
    }

    // ---------------------------------------------------------------- activations

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
    // once. A row's squares are added up by column, thread and lane.
    __device__ void normalize(const Phase& p) {
        const bool context = p.norm == kNormContext;
        const uint32_t rows = context ? step_.context_rows : step_.rows, width = net_.hidden;
        const uint16_t* const from = context ? net_.fused : net_.residual;
        stride_ = activation_stride(width);
        uint16_t* const out = b_.activations();
        float* const squares = b_.deposits();  // [row][thread], then [row]; free between phases
        float sums[kTokens] = {};
        const uint32_t padded = (width + 127) / 128 * 128;
        constexpr uint32_t kStep = kConsumerThreads * 8,
                           kTogether = 2;  // loads are in flight together
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
#pragma unroll
        for (uint32_t row = 0; row < kTokens; ++row)
            squares[row * kConsumerThreads + threadIdx.x] = sums[row];
        // The gains of the first columns are on their way meanwhile.
        float gain[8];
        const auto ask = [&](uint32_t at) {
#pragma unroll
            for (uint32_t i = 0; i < 8; ++i) gain[i] = at < width ? __ldg(p.gain + at + i) : 0.0f;
        };
        ask(threadIdx.x * 8);
        sync_consumers();
        if (p.tap > 0 && blockIdx.x < rows) keep_tap(p, blockIdx.x);
        float inverse = 0;
        if (warp_ < kTokens) {
            float sum = 0;
            for (uint32_t i = 0; i < kConsumers; ++i)
                sum += squares[warp_ * kConsumerThreads + i * 32 + threadIdx.x % 32];
            inverse = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(width) + net_.epsilon);
        }
        sync_consumers();
        if (warp_ < kTokens && threadIdx.x % 32 == 0) squares[warp_] = inverse;
        sync_consumers();
#pragma unroll 1
        for (uint32_t at = threadIdx.x * 8; at < width; at += kConsumerThreads * 8) {
            float own[8];
#pragma unroll
            for (uint32_t i = 0; i < 8; ++i) own[i] = gain[i] * kActivationScale;
            ask(at + kConsumerThreads * 8);
#pragma unroll 2
            for (uint32_t row = 0; row < kTokens; ++row) {
                uint16_t* const to = out + row * stride_ + at;
                Eight::load(to).normed(squares[row], own).store(to);
            }
        }
    }

    // The stream as it is, for the drafter: one block has one row.
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
                if (in_page == 0) page = b_.wait_page(place, pages_ + n);
                multiply_pieces(format, b_.ring.page(place) + in_page * unit_bytes,
                                token_of(p, page) + page.first * piece_columns(format), page.pieces,
                                sums);
                // Unless it has another page of the unit.
                if (direct && page.of == 1) {
                    contribute(pages.own, page.slot, page.unit + in_page, sums, unscale(format));
                    sums = {};
                } else if (page.index + kConsumers >= page.of) {
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
                streamed_ = stamp();
                if (!p.moe) done = take_shared(p, pages, group);
            }
            if (done != nullptr) {
                epilogue(p, pages, group, done, page.slot);
                if (!tail) finish(order);
            }
            if (tail) break;
        }
        b_.place.advance(b_.ring.depth, pages.count);
        pages_ += pages.count;
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

    // ---------------------------------------------------------------- what becomes of sums

    // By one warp: `sums` has row r of token t of the group's units at [unit][r][t]. `slot`: of an
    // expert.
    __device__ __forceinline__ void epilogue(const Phase& p, const Pages& pages, uint32_t group,
                                             const float* sums, uint32_t slot) {
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
                case Op::fuse:
                case Op::down: {
                    const uint32_t pair = p.moe ? b_.routing().pair[slot][t] : 0;
                    if (!p.moe) {
                        keep(p.op, row, t, sum);
                    } else if (pair != kNoPair) {
                        contribution(pages.own, pair)[row - pages.own.begin * kUnitRows] = sum;
                    }
                    break;
                }
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
#pragma unroll 1
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
#pragma unroll 4
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

    // What a token's choice of expert gives to the block's own rows, until all of its choices are
    // in.
    __device__ float* contribution(Range units, uint32_t pair) const {
        return b_.contributions() + pair * (units.end - units.begin) * kUnitRows;
    }

    // Of a unit that one warp has all columns of.
    __device__ void contribute(Range units, uint32_t slot, uint32_t unit, const TwoSums& sums,
                               float times) const {
        const uint32_t lane = threadIdx.x % 32,
                       row = (unit - units.begin) * kUnitRows + lane / 4 * 2;
#pragma unroll
        for (uint32_t token = 0; token < 2; ++token) {
            const uint32_t pair = b_.routing().pair[slot][lane % 4 * 2 + token];
            if (pair == kNoPair) continue;
            float* const to = contribution(units, pair) + row;
            to[0] = sums[token] * times;
            to[1] = sums[2 + token] * times;
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

    Block& b_;
    const Network& net_;
    const Step& step_;
    uint32_t warp_;
    uint64_t passed_;                       // signals of the barrier that have been waited for
    uint32_t stride_;                       // of the activations
    uint32_t pages_ = 0;                    // of phases before, in this launch
    uint64_t prepared_ = 0, streamed_ = 0;  // of this phase: see Stamp
};

}  // namespace tessera::gpu
