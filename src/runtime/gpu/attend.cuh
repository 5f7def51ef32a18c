// The phase of attention: which tasks there are, who does them, and how their parts become one. A
// task is a kv head, 16 of its queries, and one chunk of keys; whoever finishes the last chunk of
// 16 queries merges them.
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

    __device__ uint32_t count(const Heads& h) const { return h.kv_heads * tiles * chunks; }
};

struct Task {
    uint32_t kv, tile, chunk, chunks;
    uint32_t index;  // of the 16 queries, over all runs
};

// Warps that share keys, each with sums for kValueDims dims; and the parts that a chunk's warps
// make.
__device__ inline uint32_t sharers(const Heads& h) {
    return tile_sharers(h.v_head_dim);
}
__device__ inline uint32_t block_parts(const Heads& h) {
    return kConsumers / sharers(h);
}

// Where a part of the block lies; behind them lie the queries, and the parts' tiles.
__device__ inline float* part_at(const View& b, const Heads& h, uint32_t part) {
    return reinterpret_cast<float*>(b.activations()) + part * part_floats(h.v_head_dim);
}

__device__ inline uint4* queries_at(const View& b, const Heads& h) {
    return reinterpret_cast<uint4*>(part_at(b, h, block_parts(h)));
}
__device__ inline uint32_t* tile_at(const View& b, const Heads& h, uint32_t part) {
    return reinterpret_cast<uint32_t*>(queries_at(b, h) + h.head_dim / 16 * 32) +
           part * tile_words(h.head_dim, h.v_head_dim);
}

// A barrier among the warps of a part.
__device__ inline void sync_part(const Heads& h, uint32_t part) {
    if (sharers(h) == 1) return __syncwarp();
    sync_threads(kConsumersBarrier + 1 + part, sharers(h) * 32);
}

// One warp's tiles of the chunk.
__device__ inline void attend_chunk(const View& b, const Phase& p, const Run& run, const Task& task,
                                    uint32_t begin) {
    const Heads& h = b.heads(p);
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4;
    uint4* const operands = queries_at(b, h);
    const uint16_t* from[2];
    Seen seen[2];
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t query = task.tile * kQueries + g + 8 * half;
        const bool exists = query < h.group() * run.rows;
        const uint32_t of_group = divide(query, run.rows), row = query - of_group * run.rows;
        const uint32_t head = task.kv * h.group() + of_group;
        from[half] = exists
                         ? b.net.query + (uint64_t{run.first + row} * h.heads + head) * h.head_dim
                         : nullptr;
        seen[half] = exists ? seen_by(h, run, b.net.draft, row) : Seen{0, 0};
    }
    const uint32_t first = seen_by(h, run, b.net.draft, 0).first;
    const uint32_t end = min(begin + h.chunk, run.position + run.rows);
    const std::byte* const keys = b.cache_head(p, run.cache, task.kv);
    const uint32_t part = warp / sharers(h), first_dim = warp % sharers(h) * kValueDims;
    const bool has_part = part < block_parts(h);  // or is a warp too many
    uint32_t* const tile = tile_at(b, h, part);
    // The part's tiles of the chunk that are seen: which part a tile belongs to is a matter of
    // where the tile is, not of what is seen.
    const uint32_t stride = block_parts(h) * kKeyTile;
    uint32_t at = begin + part * kKeyTile;
    if (at + kKeyTile <= first) at += (divide(first - at - kKeyTile, stride) + 1) * stride;
    const auto ask = [&] {
        const uint32_t place = at % p.cache.ring, sharing = sharers(h) * 32;
        ask_for_tile(keys + uint64_t{place} * h.head_dim * 2,
                     keys + p.cache.key_bytes(h) + uint64_t{place} * h.v_head_dim * 2, h.head_dim,
                     h.v_head_dim, tile, threadIdx.x - part * sharing, sharing);
    };
    if (has_part && at < end) ask();
#pragma unroll 1
    for (uint32_t step = warp; step * 16 < h.head_dim; step += kConsumers)
        store_queries(from[0], from[1], step, operands);
    copies_done();
    sync_consumers();
    if (!has_part) return;
    AttentionSums sums;
#pragma unroll 1
    while (at < end) {
        attend_tile(operands, {tile, tile + key_words(h.head_dim), at}, seen, h.head_dim,
                    h.v_head_dim, first_dim, h.scale * kLog2e, sums);
        at += stride;
        if (at >= end) break;
        sync_part(h, part);  // all have read the tile
        ask();
        copies_done();
        sync_part(h, part);
    }
    store_part(sums, h.v_head_dim, first_dim, part_at(b, h, part));
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
                              dim) = {
        pack_bf16(low.x * share, low.y * share), pack_bf16(low.z * share, low.w * share),
        pack_bf16(high.x * share, high.y * share), pack_bf16(high.z * share, high.w * share)};
}

// Task `next` of the run, whose first 16 queries are the step's `first_tile`.
__device__ inline void attend_task(const View& b, const Phase& p, const Run& run,
                                   const Tasks& tasks, uint32_t next, uint32_t first_tile) {
    const Heads& h = b.heads(p);
    const uint32_t width = h.v_head_dim, eights = width / 8;
    const uint32_t tile = divide(next, tasks.chunks), kv = divide(tile, tasks.tiles);
    const Task task{kv, tile - kv * tasks.tiles, next - tile * tasks.chunks, tasks.chunks,
                    first_tile + tile};
    attend_chunk(b, p, run, task, (tasks.first_chunk + task.chunk) * h.chunk);
    sync_consumers();
    // First the warps' parts become the chunk's; then, by whoever is last, the chunks' become the
    // output.
    float* const chunks =
        b.net.parts + uint64_t{task.index} * b.net.part_chunks * part_floats(width);
    float* const chunk = chunks + task.chunk * part_floats(width);
    float* const own = part_at(b, h, 0);
    const float* parts = own;
    uint32_t count = block_parts(h), number_stride = part_floats(width);
    bool output = task.chunks == 1;
#pragma unroll 1
    while (true) {
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < kQueries * eights; i += kConsumerThreads) {
            const uint32_t query = divide(i, eights), dim = (i - query * eights) * 8;
            const Merged merged = merge_parts(own, number_stride, parts, part_floats(width), count,
                                              query, dim, width);
            if (output) {
                mix(b, p, run, task, query, dim, merged);
            } else {
                if (dim == 0) {
                    chunk[query] = merged.highest;
                    chunk[kQueries + query] = merged.total;
                }
                auto* const to =
                    reinterpret_cast<float4*>(chunk + 2 * kQueries + query * width + dim);
                to[0] = merged.value[0];
                to[1] = merged.value[1];
            }
        }
        sync_consumers();
        if (output) return;
        if (threadIdx.x == 0)
            b.counts().last = arrive_last(&b.net.arrivals[p.counters + task.index], task.chunks);
        sync_consumers();
        if (!b.counts().last) return;
            // All chunks' numbers at once; their values as they are needed.
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < task.chunks * 2 * kQueries; i += kConsumerThreads)
            own[i] = chunks[i / (2 * kQueries) * part_floats(width) + i % (2 * kQueries)];
        parts = chunks;
        count = task.chunks;
        number_stride = 2 * kQueries;
        output = true;
        sync_consumers();
    }
}

__device__ inline void attend(const View& b, const Phase& p) {
    const Heads& h = b.heads(p);
    uint32_t next = blockIdx.x, tiles = 0;
    for (uint32_t i = 0; i < b.step().runs; ++i) {
        const Run& run = b.step().run[i];
        const Tasks tasks(h, run, b.net.draft);
        const uint32_t count = tasks.count(h);
#pragma unroll 1
        for (; next < count; next += gridDim.x) attend_task(b, p, run, tasks, next, tiles);
        next -= count;
        tiles += h.kv_heads * tasks.tiles;
    }
}

}  // namespace tessera::gpu
