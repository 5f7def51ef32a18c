// The phase of attention: which tasks there are, who does them, and how their parts become one. A
// task is a kv head, 16 of its queries, one chunk of keys, and of short windows a share of the
// values' dims: few keys leave most of a card's SMs without work, and to add up chunks takes longer
// than to make scores again. Whoever finishes the last chunk of 16 queries merges them.
#pragma once

#include "runtime/gpu/block.cuh"
#include "tiles/attention_gpu.cuh"

namespace tessera::gpu {

// What row `row` of the run sees: its own position and before, or in a drafted block all of it.
__device__ inline Seen seen_by(const Heads& h, const Run& run, bool draft, uint32_t row) {
    const uint32_t position = run.position + row;
    const uint32_t first = h.window != 0 && position >= h.window ? position - h.window + 1 : 0;
    return {max(first, run.seen_from), (draft ? run.position + run.rows - 1 : position) + 1};
}

// The tasks of a run of rows.
struct Tasks {
    uint32_t queries;  // of a kv head: query head * rows + row
    uint32_t tiles;    // of kQueries queries
    uint32_t first_chunk, chunks;

    __device__ Tasks(const Heads& h, const Run& run, bool draft)
        : queries(h.group() * run.rows),
          tiles((queries + kQueries - 1) / kQueries),
          first_chunk(divide(seen_by(h, run, draft, 0).first, h.chunk)),
          chunks(divide(run.position + run.rows - 1, h.chunk) - first_chunk + 1) {}
};

struct Task {
    uint32_t kv, tile;
    uint32_t begin;            // of its keys
    uint32_t chunk, chunks;    // of those that the queries see
    uint32_t first_dim, dims;  // of the values
    uint32_t index;            // of the 16 queries and the share of dims, over all runs
};

struct Query {
    uint32_t row, head;  // of the run; of the kv head's
};

// Where a warp's part lies; behind the parts lie the queries.
__device__ inline float* part_at(const View& b, const Heads& h, uint32_t part) {
    return reinterpret_cast<float*>(b.activations()) + part * part_floats(h.dims);
}

// A warp's tiles of the chunk, into its part.
__device__ inline void attend_chunk(const View& b, const Phase& p, const Run& run,
                                    const Task& task) {
    const Heads& h = b.heads(p);
    const uint32_t warp = threadIdx.x / 32, lane = lane_now();
    const uint32_t first = seen_by(h, run, b.net.draft, 0).first;
    const uint32_t end = min(task.begin + h.chunk, run.position + run.rows);
    const std::byte* const keys = b.cache_head(p, run.cache, task.kv);
    const std::byte* const values = keys + p.cache.key_bytes(h) + task.first_dim * 4;
    // The warp's tiles of the chunk that are seen: whose a tile is is a matter of where it is, not
    // of what is seen.
    constexpr uint32_t kApart = kAttendWarps * kKeyTile;
    uint32_t at = task.begin + warp * kKeyTile;
    if (at + kKeyTile <= first) at += (divide(first - at - kKeyTile, kApart) + 1) * kApart;
    TileKeys tile;
    // Whether or not there is a tile at `at`, its place holds one. Values come to the first cache
    // meanwhile: eight rows of up to four lines.
    const auto ask = [&] {
        const uint32_t place = at % p.cache.ring;
        tile.load(keys + uint64_t{place} * h.head_dim * 2, h.head_dim);
        const uint32_t dim = lane / 8 * kValueDims;
        if (dim < task.dims)
            ask_ahead(values + (uint64_t{place / 2 + lane % 8} * h.v_head_dim + dim) * 4);
    };
    ask();
    auto* const operands = reinterpret_cast<uint4*>(part_at(b, h, kAttendWarps));
    // Row and head of the lane's queries, or no row.
    const auto query_of = [&](uint32_t half) {
        const uint32_t query = task.tile * kQueries + lane / 4 + 8 * half;
        const uint32_t of_group = divide(query, run.rows);
        return of_group < h.group() ? Query{query - of_group * run.rows, of_group}
                                    : Query{run.rows, 0};
    };
    static_assert(kConsumers * 16 >= kHeadDimMax);
    if (warp * 16 < h.head_dim) {
        const uint16_t* from[2];
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            const Query query = query_of(half);
            const uint32_t head = task.kv * h.group() + query.head;
            from[half] =
                query.row < run.rows
                    ? b.net.query + (uint64_t{run.first + query.row} * h.heads + head) * h.head_dim
                    : nullptr;
        }
        store_queries(from[0], from[1], warp, operands);
    }
    sync_consumers();
    if (warp >= kAttendWarps) return;
    Seen seen[2];
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t row = query_of(half).row;
        seen[half] = row < run.rows ? seen_by(h, run, b.net.draft, row) : Seen{0, 0};
    }
    float* const part = part_at(b, h, warp);
    AttentionSums sums;
#pragma unroll 1
    for (bool has = at < end; has;) {
        const TileScores scores(operands, tile, h.head_dim);
        attend_tile(scores, at, seen, values + uint64_t{at % p.cache.ring} * h.v_head_dim * 2,
                    h.v_head_dim, task.dims, h.scale * kLog2e, sums, part);
        at += kApart;
        if (at >= end) break;
        ask();
    }
    store_sums(sums, part);
}

// Writes eight values of a query's output, from dim `dim`.
__device__ inline void mix(const View& b, const Phase& p, const Run& run, const Task& task,
                           uint32_t query, uint32_t dim, const Merged& merged) {
    const Heads& h = b.heads(p);
    const uint32_t at = task.tile * kQueries + query;
    if (at >= h.group() * run.rows) return;
    const uint32_t of_group = divide(at, run.rows);
    const uint32_t head = task.kv * h.group() + of_group;
    const uint32_t row = run.first + at - of_group * run.rows;
    const float sink = p.vector != nullptr ? __ldg(p.vector + head) : -INFINITY;
    const float share = output_share(merged, sink);
    const float4 low = merged.value[0], high = merged.value[1];
    *reinterpret_cast<uint4*>(b.net.mixed + (uint64_t{row} * h.heads + head) * h.v_head_dim +
                              task.first_dim + dim) = {
        pack_bf16(low.x * share, low.y * share), pack_bf16(low.z * share, low.w * share),
        pack_bf16(high.x * share, high.y * share), pack_bf16(high.z * share, high.w * share)};
}

__device__ inline void attend_task(const View& b, const Phase& p, const Run& run,
                                   const Task& task) {
    const Heads& h = b.heads(p);
    attend_chunk(b, p, run, task);
    sync_consumers();
    // First the warps' parts become the chunk's; then, by whoever is last, the chunks' become the
    // output.
    float* const chunks =
        b.net.parts + uint64_t{task.index} * b.net.part_chunks * part_floats(h.dims);
    float* const chunk = chunks + task.chunk * part_floats(h.dims);
    float* const own = part_at(b, h, 0);
    const float* parts = own;
    const uint32_t eights = task.dims / 8;
    uint32_t count = kAttendWarps, number_stride = part_floats(h.dims);
    bool last = task.chunks == 1;
#pragma unroll 1
    while (true) {
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < kQueries * eights; i += kConsumerThreads) {
            const uint32_t query = divide(i, eights), dim = (i - query * eights) * 8;
            const Merged merged = merge_parts(own, number_stride, parts, count, query, dim, h.dims);
            if (last) {
                mix(b, p, run, task, query, dim, merged);
            } else {
                if (dim == 0) {
                    chunk[query] = merged.highest;
                    chunk[kQueries + query] = merged.total;
                }
                auto* const to = reinterpret_cast<float4*>(chunk + 2 * kQueries +
                                                           query * part_stride(h.dims) + dim);
                to[0] = merged.value[0];
                to[1] = merged.value[1];
            }
        }
        sync_consumers();
        if (last) return;
        if (threadIdx.x == 0)
            b.counts().last = arrive_last(&b.net.arrivals[p.counters + task.index], task.chunks);
        sync_consumers();
        if (!b.counts().last) return;
            // All chunks' numbers at once; their values as they are needed.
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < task.chunks * 2 * kQueries; i += kConsumerThreads)
            own[i] = chunks[i / (2 * kQueries) * part_floats(h.dims) + i % (2 * kQueries)];
        parts = chunks;
        count = task.chunks;
        number_stride = 2 * kQueries;
        last = true;
        sync_consumers();
    }
}

// The step's task `next`, and whose it is. False if there are not so many.
__device__ inline bool find_task(const View& b, const Heads& h, uint32_t next, Task& task,
                                 uint32_t& run_index) {
    uint32_t outputs_before = 0;
#pragma unroll 1
    for (run_index = 0; run_index < b.step().runs; ++run_index) {
        const Tasks tasks(h, b.step().run[run_index], b.net.draft);
        const uint32_t outputs = h.kv_heads * tasks.tiles * h.dim_shares;
        if (next >= outputs * tasks.chunks) {
            next -= outputs * tasks.chunks;
            outputs_before += outputs;
            continue;
        }
        const uint32_t output = divide(next, tasks.chunks), tile = divide(output, h.dim_shares);
        const uint32_t kv = divide(tile, tasks.tiles);
        const uint32_t first_dim = (output - tile * h.dim_shares) * h.dims;
        const uint32_t chunk = next - output * tasks.chunks;
        task = {kv,
                tile - kv * tasks.tiles,
                (tasks.first_chunk + chunk) * h.chunk,
                chunk,
                tasks.chunks,
                first_dim,
                min(h.dims, h.v_head_dim - first_dim),
                outputs_before + output};
        return true;
    }
    return false;
}

__device__ inline void attend(const View& b, const Phase& p) {
    const Heads& h = b.heads(p);
    Task task;
    uint32_t run;
#pragma unroll 1
    for (uint32_t next = blockIdx.x; find_task(b, h, next, task, run); next += gridDim.x)
        attend_task(b, p, b.step().run[run], task);
}

}  // namespace tessera::gpu
