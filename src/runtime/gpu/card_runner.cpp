// Steps on the card: a walker for each program, the weights that they share, and sequences' memory.
#include <optional>

#include "base/check.h"
#include "runtime/course.h"
#include "runtime/gpu/card.h"
#include "runtime/gpu/machine.h"
#include "runtime/gpu/plans.h"
#include "runtime/gpu/rounds_machine.h"

namespace tessera::gpu {
namespace {

// Bytes of a cache that lie together.
struct Piece {
    uint64_t offset, bytes;
};

// What later tokens overwrite: the sliding layers' keys and values. Neighbours become one piece.
std::vector<Piece> rings_of(const Shape& shape, const CacheLayout& layout) {
    std::vector<Piece> pieces;
    for (uint32_t i = 0; i < shape.layers; ++i) {
        if (shape.attention(i).window == 0) continue;
        const uint64_t begin = layout.layers[i].offset;
        const uint64_t end = i + 1 < shape.layers ? layout.layers[i + 1].offset : layout.bytes;
        if (!pieces.empty() && pieces.back().offset + pieces.back().bytes == begin) {
            pieces.back().bytes += end - begin;
        } else {
            pieces.push_back({begin, end - begin});
        }
    }
    return pieces;
}

class CardMemory : public SequenceMemory {
  public:
    // Copies are asked for in the stream's order. `draft`: of a drafter's sequences, else null.
    CardMemory(const CacheLayout& layout, std::vector<Piece> rings, const CacheLayout* draft,
               uint64_t taps_bytes, cudaStream_t stream)
        : stream_(stream), cache_(layout), rings_(std::move(rings)), taps_(taps_bytes) {
        for (const Piece& piece : rings_) mark_bytes_ += piece.bytes;
        marks_ = DeviceMemory(kMarks * mark_bytes_);
        cache = cache_.data();
        if (draft == nullptr) return;
        draft_cache = draft_cache_.emplace(*draft).data();
        taps = reinterpret_cast<uint16_t*>(taps_.data());
    }

    void save_rings(uint32_t mark) override {
        each(mark, [](std::byte* ring, std::byte* copy) { return std::pair(copy, ring); });
    }
    void load_rings(uint32_t mark) override {
        each(mark, [](std::byte* ring, std::byte* copy) { return std::pair(ring, copy); });
    }

  private:
    template <typename Order>
    void each(uint32_t mark, Order order) {
        std::byte* copy = marks_.data() + mark * mark_bytes_;
        for (const Piece& piece : rings_) {
            const auto [to, from] = order(cache_.data() + piece.offset, copy);
            CHECK(cudaMemcpyAsync(to, from, piece.bytes, cudaMemcpyDeviceToDevice, stream_) ==
                  cudaSuccess);
            copy += piece.bytes;
        }
    }

    cudaStream_t stream_;
    GpuCache cache_;
    std::vector<Piece> rings_;
    std::optional<GpuCache> draft_cache_;
    DeviceMemory taps_, marks_;
    uint64_t mark_bytes_ = 0;
};

class CardRunner : public Runner {
  public:
    CardRunner(const PackedWeights& target, const PackedWeights* drafter, uint32_t context)
        : weights_(upload(target, 0)),
          logits_(size_t{kStepRowsMax} * weights_.vocab.count()),
          live_(weights_.shape.layers) {
        const Options options{.context = context};
        if (drafter != nullptr) {
            const DrafterShape& shape = *drafter->drafter;
            drafter_ = upload_drafter(*drafter, weights_, 0);
            block_.emplace(block_program(*drafter_, context), *drafter_, options, stream_.get());
            context_.emplace(context_program(*drafter_, context), *drafter_, options,
                             stream_.get());
            taps_bytes_ =
                uint64_t{taps_ring(shape)} * shape.taps.size() * shape.hidden * sizeof(bf16);
        }
        target_.emplace(target_program(weights_, context, drafter_ ? &*drafter_ : nullptr),
                        weights_, options, stream_.get());
        rings_ = rings_of(weights_.shape, target_->cache());
        rounds_.emplace(*target_, block_ ? &*block_ : nullptr, stream_.get());
    }

    std::unique_ptr<SequenceMemory> take_memory(bool drafts) override {
        CHECK(!drafts || block_);
        return std::make_unique<CardMemory>(target_->cache(), rings_,
                                            drafts ? &block_->cache() : nullptr,
                                            drafts ? taps_bytes_ : 0, stream_.get());
    }

    void run(Pass pass, const Step& step, uint32_t first) override {
        Walker& walker = pass == Pass::target  ? *target_
                         : pass == Pass::block ? *block_
                                               : *context_;
        walker.launch(step);
        cudaError_t copied = cudaSuccess;
        const auto copy = [&](void* to, const void* from, size_t bytes) {
            if (copied == cudaSuccess)
                copied = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_.get());
        };
        if (pass != Pass::context && step.logits_from < step.rows) {
            const uint64_t vocab = walker.vocab();
            copy(logits_.data() + (first + step.logits_from) * vocab,
                 walker.logits() + step.logits_from * vocab,
                 (step.rows - step.logits_from) * vocab * sizeof(float));
        }
        if (pass == Pass::target)
            copy(live_.data(), walker.network().live, live_.all().size_bytes());
        walker.finish();  // a step that failed says here what it waited for
        CHECK(copied == cudaSuccess);
    }

    void start_rounds(const RoundsInput& input) override { rounds_->start(input); }
    std::optional<Round> next_round() override { return rounds_->next(); }
    void stop_rounds() override { rounds_->stop(); }

    std::span<const float> logits(uint32_t row) const override {
        const uint32_t vocab = target_->vocab();
        return logits_.all().subspan(size_t{row} * vocab, vocab);
    }

    uint32_t live_experts() const override {
        uint32_t sum = 0;
        for (const uint32_t live : live_.all()) sum += live;
        return sum;
    }

  private:
    Stream stream_;
    DeviceWeights weights_;
    std::optional<DeviceWeights> drafter_;
    std::optional<Walker> target_, block_, context_;
    std::optional<RoundsMachine> rounds_;
    std::vector<Piece> rings_;
    uint64_t taps_bytes_ = 0;
    PinnedMemory<float> logits_;   // kStepRowsMax, vocab
    PinnedMemory<uint32_t> live_;  // layers
};

}  // namespace

std::unique_ptr<Runner> make_runner(const PackedWeights& target, const PackedWeights* drafter,
                                    uint32_t context) {
    CHECK(target.ranks.size() == 1);
    return std::make_unique<CardRunner>(target, drafter, context);
}

}  // namespace tessera::gpu
