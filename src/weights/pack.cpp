#include "weights/pack.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>

#include "base/check.h"
#include "base/memory.h"
#include "base/threads.h"
#include "base/topology.h"

namespace tessera {
namespace {

// ------------------------------------------------------------------ what goes where

using Sources = std::vector<const Matrix*>;

// Units of one packed matrix to be: where each of its rows comes from.
struct Job {
    PackedMatrix* out;
    Span units;
    Sources sources;  // that no job needs when this one is done, on all ranks
    std::function<SourceRow(uint32_t row)> row_at;
    uint32_t column_begin = 0;
    uint32_t rank = 0;
    std::shared_ptr<std::atomic<uint32_t>> left;  // ranks that still need these sources
    std::span<const std::byte> read;              // that this job alone needs
};

// The format that all parts have; where they differ, where fp8 is to be unpacked, or where a slice
// would cut an fp8 scale block, bf16.
Format common_format(const Sources& parts, uint32_t column_begin, bool unpack_fp8) {
    const Format first = parts.front()->format;
    const bool same =
        std::ranges::all_of(parts, [&](const Matrix* part) { return part->format == first; });
    const bool unpack = unpack_fp8 || column_begin % kFp8Block != 0;
    if (!same || (first == Format::fp8 && unpack)) return Format::bf16;
    return first;
}

// Lists the jobs of every rank, and lays out the packed matrices without their bytes.
class Layout {
  public:
    uint64_t arena_bytes(uint32_t rank) const {
        uint64_t bytes = vector_bytes_;
        for (const Job& job : jobs)
            if (job.rank == rank && job.units.begin == 0) bytes += Arena::taken(job.out->bytes());
        return bytes;
    }

    PackedWeights packed;
    std::vector<Job> jobs;

  protected:
    Layout(const Shape& shape, uint32_t ranks, bool unpack_fp8)
        : ranks_(ranks), unpack_fp8_(unpack_fp8) {
        packed.shape = shape;
        packed.ranks.resize(ranks);
        for (PackedRank& rank : packed.ranks) rank.layers.resize(shape.layers);
    }

    PackedLayer& layer(uint32_t rank, uint32_t i) { return packed.ranks[rank].layers[i]; }

    // The jobs of all ranks for the same sources, one after another: what one has read from the
    // disk, the others find in memory, and the last lets go of it.
    template <typename Add>
    void each_rank(Add add) {
        left_ = std::make_shared<std::atomic<uint32_t>>(ranks_);
        for (uint32_t rank = 0; rank < ranks_; ++rank) add(rank);
        left_ = nullptr;
    }

    // Rows of q, k and v as one matrix: `q_rows` of the rank's queries (none in a drafter's keys),
    // then its keys and values.
    template <typename Layer>
    void add_heads(const Layer& in, const AttentionShape& a, uint32_t rank, uint32_t q_rows,
                   uint32_t k_rows, uint32_t v_rows, PackedMatrix& out) {
        const AttentionPart part = attention_part(a, rank, ranks_);
        const auto row_at = [&in, &a, part, q_rows, k_rows](uint32_t row) -> SourceRow {
            if (row >= q_rows + k_rows)
                return {&in.v, part.kv_heads.begin * a.v_head_dim + row - q_rows - k_rows};
            const bool is_q = row < q_rows;
            const uint32_t at = is_q ? row : row - q_rows;
            const uint32_t head = (is_q ? part.heads : part.kv_heads).begin + at / a.head_dim;
            return {is_q ? &in.q : &in.k,
                    head * a.head_dim + rotary_source_dim(at % a.head_dim, a.rotary_dims)};
        };
        Sources sources;
        if (q_rows > 0) sources.push_back(&in.q);
        if (k_rows > 0) sources.insert(sources.end(), {&in.k, &in.v});
        add(out, std::move(sources), q_rows + k_rows + v_rows, row_at, 0, in.q.columns, rank);
    }

    void add_output(const Matrix& o, const AttentionShape& a, uint32_t i) {
        each_rank([&](uint32_t rank) {
            const AttentionPart part = attention_part(a, rank, ranks_);
            add_rows(layer(rank, i).o, o, {0, o.rows}, part.heads.begin * a.v_head_dim,
                     part.heads.count() * a.v_head_dim, rank);
        });
    }

    // `place` finds the feed-forward of a layer that is meant.
    template <typename Place>
    void add_feed_forward(const FeedForward& in, Place place, uint32_t i) {
        // A unit of gate, then the unit of up that belongs to it.
        each_rank([&](uint32_t rank) {
            const Span part = share(in.gate.rows, rank, ranks_);
            const auto row_at = [&in, part](uint32_t row) -> SourceRow {
                const uint32_t unit = row / kUnitRows;
                const uint32_t from = part.begin + unit / 2 * kUnitRows + row % kUnitRows;
                if (from >= part.end) return {};
                return {unit % 2 == 0 ? &in.gate : &in.up, from};
            };
            add(place(layer(rank, i))->gate_up, {&in.gate, &in.up},
                2 * padded(part.count(), kUnitRows), row_at, 0, in.gate.columns, rank);
        });
        each_rank([&](uint32_t rank) {
            const Span part = share(in.gate.rows, rank, ranks_);
            add_rows(place(layer(rank, i))->down, in.down, {0, in.down.rows}, part.begin,
                     part.count(), rank);
        });
    }

    // Rows `span` of one matrix, in their order.
    void add_rows(PackedMatrix& out, const Matrix& matrix, Span span, uint32_t column_begin,
                  uint32_t columns, uint32_t rank) {
        const auto row_at = [&matrix, span](uint32_t row) -> SourceRow {
            return {&matrix, span.begin + row};
        };
        add(out, {&matrix}, span.count(), row_at, column_begin, columns, rank);
    }

    void add(PackedMatrix& out, Sources sources, uint32_t rows,
             std::function<SourceRow(uint32_t)> row_at, uint32_t column_begin, uint32_t columns,
             uint32_t rank) {
        out = {common_format(sources, column_begin, unpack_fp8_), rows, columns, nullptr};
        jobs.push_back({&out,
                        {0, out.units()},
                        std::move(sources),
                        std::move(row_at),
                        column_begin,
                        rank,
                        left_,
                        {}});
    }

    void add_vector(const std::vector<float>& v) {
        vector_bytes_ += Arena::taken(v.size() * sizeof(float));
    }

    uint32_t ranks_;

  private:
    bool unpack_fp8_;
    uint64_t vector_bytes_ = 0;
    std::shared_ptr<std::atomic<uint32_t>> left_;  // of the jobs being added
};

class TargetLayout : public Layout {
  public:
    TargetLayout(const Weights& weights, uint32_t ranks, bool unpack_fp8)
        : Layout(weights.shape, ranks, unpack_fp8) {
        const Shape& s = weights.shape;
        for (uint32_t i = 0; i < s.layers; ++i) {
            const LayerWeights& in = weights.layers[i];
            const AttentionShape& a = s.attention(i);
            each_rank([&](uint32_t rank) {
                const AttentionPart part = attention_part(a, rank, ranks);
                add_heads(in, a, rank, part.heads.count() * a.head_dim,
                          part.kv_heads.count() * a.head_dim, part.kv_heads.count() * a.v_head_dim,
                          layer(rank, i).qkv);
            });
            add_output(in.o, a, i);
            for (const auto* v : {&in.input_norm, &in.post_norm, &in.sink, &in.correction_bias})
                add_vector(*v);
            if (!s.is_moe[i]) {
                add_feed_forward(
                    in.dense, [](PackedLayer& layer) { return &layer.dense; }, i);
                continue;
            }
            each_rank([&](uint32_t rank) {
                add_rows(layer(rank, i).router, in.router, {0, s.experts}, 0, s.hidden, rank);
                layer(rank, i).experts.resize(s.experts);  // never again: jobs point into it
            });
            for (uint32_t e = 0; e < s.experts; ++e)
                add_feed_forward(
                    in.experts[e], [e](PackedLayer& l) { return &l.experts[e]; }, i);
        }
        for (uint32_t rank = 0; rank < ranks; ++rank) add_head(weights, rank);
        add_vector(weights.norm);
    }

  private:
    // The largest matrix, in pieces: for more threads, and so that little of it is in memory twice.
    void add_head(const Weights& weights, uint32_t rank) {
        constexpr uint32_t kPieceUnits = 64;
        PackedRank& out = packed.ranks[rank];
        out.vocab = share(weights.shape.vocab, rank, ranks_);
        add_rows(out.head, weights.head, out.vocab, 0, weights.shape.hidden, rank);
        Job whole = std::move(jobs.back());
        jobs.pop_back();
        for (uint32_t begin = 0; begin < out.head.units(); begin += kPieceUnits) {
            Job piece = whole;
            piece.sources.clear();
            piece.units = {begin, std::min(begin + kPieceUnits, out.head.units())};
            const Matrix& from = weights.head;
            const uint64_t first = out.vocab.begin + begin * kUnitRows;
            const uint64_t last =
                std::min<uint64_t>(out.vocab.begin + piece.units.end * kUnitRows, out.vocab.end);
            piece.read = {from.data + first * from.row_bytes(), (last - first) * from.row_bytes()};
            jobs.push_back(std::move(piece));
        }
    }
};

class DrafterLayout : public Layout {
  public:
    DrafterLayout(const DrafterWeights& weights, const PackedWeights& target)
        : Layout(layers_of(weights.shape, target.shape), static_cast<uint32_t>(target.ranks.size()),
                 false) {
        const AttentionShape& a = weights.shape.attention;
        each_rank([&](uint32_t rank) {
            const Span columns = share(weights.fc.columns, rank, ranks_);
            add_rows(packed.ranks[rank].fuse, weights.fc, {0, weights.fc.rows}, columns.begin,
                     columns.count(), rank);
        });
        for (uint32_t i = 0; i < weights.shape.layers; ++i) {
            const DrafterLayerWeights& in = weights.layers[i];
            each_rank([&](uint32_t rank) {
                const AttentionPart part = attention_part(a, rank, ranks_);
                add_heads(in, a, rank, part.heads.count() * a.head_dim, 0, 0, layer(rank, i).query);
            });
            each_rank([&](uint32_t rank) {
                const AttentionPart part = attention_part(a, rank, ranks_);
                add_heads(in, a, rank, 0, part.kv_heads.count() * a.head_dim,
                          part.kv_heads.count() * a.v_head_dim, layer(rank, i).keys);
            });
            add_output(in.o, a, i);
            add_feed_forward(
                in.dense, [](PackedLayer& layer) { return &layer.dense; }, i);
            for (const auto* v : {&in.input_norm, &in.post_norm, &in.sink, &in.q_norm, &in.k_norm})
                add_vector(*v);
        }
        add_vector(weights.norm);
        add_vector(weights.hidden_norm);
    }
};

// ------------------------------------------------------------------ vectors

std::span<const float> copied(std::span<const float> values, Arena& arena) {
    std::byte* const at = arena.take(values.size_bytes());
    if (!values.empty()) std::memcpy(at, values.data(), values.size_bytes());
    return {reinterpret_cast<const float*>(at), values.size()};
}

// The rank's heads of it; empty without sinks.
std::span<const float> copied_sink(const std::vector<float>& sink, const AttentionShape& a,
                                   uint32_t rank, uint32_t ranks, Arena& arena) {
    if (sink.empty()) return {};
    const Span heads = attention_part(a, rank, ranks).heads;
    return copied(std::span(sink).subspan(heads.begin, heads.count()), arena);
}

void copy_vectors(const Weights& weights, uint32_t rank, uint32_t ranks, PackedRank& out) {
    for (uint32_t i = 0; i < weights.shape.layers; ++i) {
        const LayerWeights& in = weights.layers[i];
        PackedLayer& layer = out.layers[i];
        layer.input_norm = copied(in.input_norm, out.arena);
        layer.post_norm = copied(in.post_norm, out.arena);
        layer.sink = copied_sink(in.sink, weights.shape.attention(i), rank, ranks, out.arena);
        layer.correction_bias = copied(in.correction_bias, out.arena);
    }
    out.norm = copied(weights.norm, out.arena);
}

void copy_vectors(const DrafterWeights& weights, uint32_t rank, uint32_t ranks, PackedRank& out) {
    const AttentionShape& a = weights.shape.attention;
    // A head's gains, where its dims stand.
    const auto turned = [&](const std::vector<float>& gain) {
        std::vector<float> moved(gain.size());
        for (uint32_t d = 0; d < moved.size(); ++d)
            moved[d] = gain[rotary_source_dim(d, a.rotary_dims)];
        return copied(moved, out.arena);
    };
    for (uint32_t i = 0; i < weights.shape.layers; ++i) {
        const DrafterLayerWeights& in = weights.layers[i];
        PackedLayer& layer = out.layers[i];
        layer.input_norm = copied(in.input_norm, out.arena);
        layer.post_norm = copied(in.post_norm, out.arena);
        layer.sink = copied_sink(in.sink, a, rank, ranks, out.arena);
        layer.query_norm = turned(in.q_norm);
        layer.key_norm = turned(in.k_norm);
    }
    out.norm = copied(weights.norm, out.arena);
    out.context_norm = copied(weights.hidden_norm, out.arena);
}

void copy_embedding(const Matrix& from, const PackOptions& options, PackedWeights& out) {
    const uint64_t count = uint64_t{from.rows} * from.columns;
    out.embedding_arena = Arena(Arena::taken(count * sizeof(bf16)));
    auto* const to = reinterpret_cast<bf16*>(out.embedding_arena.take(count * sizeof(bf16)));
    constexpr uint32_t kRowsAtOnce = 256;
    parallel_for((from.rows + kRowsAtOnce - 1) / kRowsAtOnce, options.threads, [&](size_t piece) {
        std::vector<float> values(from.columns);
        const auto begin = static_cast<uint32_t>(piece * kRowsAtOnce);
        for (uint32_t row = begin; row < std::min(begin + kRowsAtOnce, from.rows); ++row) {
            dequantize_row(from, row, values);
            for (uint32_t i = 0; i < from.columns; ++i)
                to[uint64_t{row} * from.columns + i] = to_bf16(values[i]);
        }
        const uint32_t end = std::min(begin + kRowsAtOnce, from.rows);
        if (options.drop)
            options.drop({from.data + begin * from.row_bytes(), (end - begin) * from.row_bytes()});
    });
    out.embedding = {to, count};
}

}  // namespace

uint64_t PackedWeights::bytes() const {
    uint64_t bytes = embedding_arena.bytes();
    for (const PackedRank& rank : ranks) bytes += rank.arena.bytes();
    return bytes;
}

namespace {

// Takes memory, copies what is small, and moves the rest in parallel.
template <typename Source>
void fill(Layout& layout, const Source& weights, const PackOptions& options) {
    const auto ranks = static_cast<uint32_t>(layout.packed.ranks.size());
    const Topology here = topology();
    for (uint32_t rank = 0; rank < ranks; ++rank) {
        PackedRank& out = layout.packed.ranks[rank];
        out.arena = Arena(layout.arena_bytes(rank), memory_node(here, rank, ranks));
        copy_vectors(weights, rank, ranks, out);
    }
    uint64_t total = 0;
    for (Job& job : layout.jobs) {
        if (job.units.begin > 0) continue;  // a further piece
        job.out->data = layout.packed.ranks[job.rank].arena.take(job.out->bytes());
        total += job.out->bytes();
    }

    std::atomic<uint64_t> done = 0;
    std::mutex drawing;
    parallel_for(layout.jobs.size(), options.threads, [&](size_t i) {
        const Job& job = layout.jobs[i];
        const PackedMatrix& out = *job.out;
        std::vector<SourceRow> rows;
        for (uint32_t unit = job.units.begin; unit < job.units.end; ++unit) {
            rows.clear();
            const uint32_t begin = unit * kUnitRows;
            for (uint32_t row = begin; row < std::min(begin + kUnitRows, out.rows); ++row)
                rows.push_back(job.row_at(row));
            pack_unit(rows, out.format, job.column_begin, out.columns,
                      const_cast<std::byte*>(out.unit(unit)));
        }
        if (options.drop && !job.read.empty()) options.drop(job.read);
        const bool last = job.left && --*job.left == 0;
        for (const Matrix* source : job.sources) {
            if (!last || !options.drop) continue;
            options.drop(source->stored_bytes());
            if (source->scales != nullptr) options.drop(source->stored_scales());
        }
        const uint64_t now = done += job.units.count() * out.unit_bytes();
        if (!options.progress) return;
        const std::unique_lock lock(drawing, std::try_to_lock);  // whoever is late leaves it
        if (lock && now < total) options.progress(now, total);
    });
    if (options.progress) options.progress(total, total);
}

}  // namespace

namespace {

uint64_t target_bytes(const Weights& weights, uint32_t ranks, bool unpack_fp8) {
    const TargetLayout layout(weights, ranks, unpack_fp8);
    uint64_t bytes =
        Arena::taken(uint64_t{weights.embedding.rows} * weights.embedding.columns * sizeof(bf16));
    for (uint32_t rank = 0; rank < ranks; ++rank) bytes += layout.arena_bytes(rank);
    return bytes;
}

// Half of the cache: others use it too.
bool unpacks(const Weights& weights, uint32_t ranks, Fp8 fp8) {
    if (fp8 != Fp8::unpack_in_cache) return fp8 == Fp8::unpack;
    return 2 * target_bytes(weights, ranks, true) <= last_cache_bytes();
}

}  // namespace

uint64_t packed_bytes(const Weights& weights, uint32_t ranks, Fp8 fp8) {
    return target_bytes(weights, ranks, unpacks(weights, ranks, fp8));
}

PackedWeights pack_weights(const Weights& weights, const PackOptions& options) {
    CHECK(!ranks_problem(weights.shape, options.ranks));
    TargetLayout layout(weights, options.ranks, unpacks(weights, options.ranks, options.fp8));
    fill(layout, weights, options);
    copy_embedding(weights.embedding, options, layout.packed);
    return std::move(layout.packed);
}

uint64_t packed_bytes(const DrafterWeights& weights, const PackedWeights& target) {
    const DrafterLayout layout(weights, target);
    uint64_t bytes = 0;
    for (uint32_t rank = 0; rank < target.ranks.size(); ++rank) bytes += layout.arena_bytes(rank);
    return bytes;
}

PackedWeights pack_drafter(const DrafterWeights& weights, const PackedWeights& target,
                           const PackOptions& options) {
    CHECK(options.ranks == target.ranks.size());
    CHECK(!drafter_ranks_problem(weights.shape, options.ranks));
    DrafterLayout layout(weights, target);
    fill(layout, weights, options);
    PackedWeights& packed = layout.packed;
    packed.drafter = weights.shape;
    packed.mask = weights.mask_embedding;
    packed.embedding = target.embedding;
    for (uint32_t rank = 0; rank < options.ranks; ++rank) {
        packed.ranks[rank].head = target.ranks[rank].head;
        packed.ranks[rank].vocab = target.ranks[rank].vocab;
    }
    return std::move(packed);
}

}  // namespace tessera
