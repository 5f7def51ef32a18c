// The card's decoder without a card: the CPU machine runs its steps. What it reads, drafts and
// comes back to is bit for bit what the CPU's decoder does; and its steps are such as a card takes.
#include <array>
#include <cmath>

#include <gtest/gtest.h>

#include "runtime/gpu/decoder.h"
#include "runtime/target.h"

namespace tessera {
namespace {

using test::seeded_tokens;
using test::Target;

// A sequence's memory as the CPU has it: where a step names a cache, it is the KvCache itself.
class HostMemory : public gpu::SequenceMemory {
  public:
    HostMemory(const Target& t, bool drafts) : cache_(t.packed.shape, 1, test::kContext) {
        for (auto& mark : marks_) mark.resize(cache_.ring_bytes());
        cache = reinterpret_cast<std::byte*>(&cache_);
        if (!drafts) return;
        draft_cache_.emplace_back(t.drafter.shape, 1, test::kContext + t.shape.block);
        taps_.resize(size_t{taps_ring(t.shape)} * t.shape.taps.size() * t.shape.hidden);
        draft_cache = reinterpret_cast<std::byte*>(&draft_cache_.front());
        taps = &taps_.front().bits;
    }

    void save_rings(uint32_t mark) override { cache_.save_rings(marks_[mark].data()); }
    void load_rings(uint32_t mark) override { cache_.load_rings(marks_[mark].data()); }

  private:
    KvCache cache_;
    std::vector<KvCache> draft_cache_;
    std::vector<bf16> taps_;
    std::array<std::vector<std::byte>, kMarks> marks_;
};

class HostRunner : public gpu::Runner {
  public:
    explicit HostRunner(Target& target)
        : t_(target), logits_(size_t{kStepRowsMax} * target.packed.shape.vocab, NAN) {}

    std::unique_ptr<gpu::SequenceMemory> take_memory(bool drafts) override {
        return std::make_unique<HostMemory>(t_, drafts);
    }

    void run(gpu::Pass pass, const gpu::Step& step, uint32_t first) override {
        ++runs[static_cast<uint32_t>(pass)];
        expect_sound(pass, step);
        StepInput input;
        std::vector<const KvCache*> caches;
        std::vector<bf16*> taps;
        for (uint32_t i = 0; i < step.runs; ++i)
            caches.insert(caches.end(), step.run[i].rows, cache_of(step.run[i].cache));
        for (uint16_t* const to : std::span(step.taps).first(step.rows))
            taps.push_back(reinterpret_cast<bf16*>(to));
        input.tokens = std::span(step.tokens).first(step.rows);
        input.positions = std::span(step.positions).first(step.rows);
        input.caches = caches;
        input.logits_from = step.logits_from;
        std::vector<const bf16*> context;
        if (pass == gpu::Pass::target) {
            input.taps = taps;
            t_.machine.step(input);
        } else {
            for (const uint16_t* const row : std::span(step.context_taps).first(step.context_rows))
                context.push_back(reinterpret_cast<const bf16*>(row));
            input.context = {cache_of(step.run[0].cache), step.context_position, context,
                             step.run[0].seen_from};
            t_.machine.draft(input);
        }
        for (uint32_t row = step.logits_from; row < step.rows; ++row) {
            const std::span<float> to = memory_of(first + row);
            const auto found = pass == gpu::Pass::target ? t_.machine.logits_at(row, to)
                                                         : t_.machine.draft_logits_at(row, to);
            if (found.data() != to.data()) std::ranges::copy(found, to.begin());
            ++copied;
        }
    }

    std::span<const float> logits(uint32_t row) const override {
        const uint32_t vocab = t_.packed.shape.vocab;
        return std::span(logits_).subspan(size_t{row} * vocab, vocab);
    }
    uint32_t live_experts() const override { return t_.machine.live_experts(); }

    uint32_t runs[3] = {};  // by Pass
    uint32_t copied = 0;    // rows of logits

  private:
    static KvCache* cache_of(std::byte* cache) { return reinterpret_cast<KvCache*>(cache); }
    std::span<float> memory_of(uint32_t row) {
        const uint32_t vocab = t_.packed.shape.vocab;
        return std::span(logits_).subspan(size_t{row} * vocab, vocab);
    }

    // What the kernel relies on (runtime/gpu/model.h).
    static void expect_sound(gpu::Pass pass, const gpu::Step& step) {
        EXPECT_LE(step.rows, gpu::kRowsMax);
        EXPECT_LE(step.context_rows, gpu::kRowsMax);
        uint32_t rows = 0;
        for (uint32_t i = 0; i < step.runs; ++i) {
            const gpu::Run& run = step.run[i];
            EXPECT_EQ(run.first, rows);
            EXPECT_GT(run.rows, 0u);
            for (uint32_t row = 0; row < run.rows; ++row)
                EXPECT_EQ(step.positions[rows + row], run.position + row);
            rows += run.rows;
            for (uint32_t other = 0; other < i; ++other)
                EXPECT_NE(step.run[other].cache, run.cache) << "a sequence is one run of a step";
        }
        EXPECT_EQ(rows, step.rows);
        EXPECT_TRUE(pass != gpu::Pass::context || step.rows == 0);
        EXPECT_TRUE(pass != gpu::Pass::target || step.context_rows == 0);
    }

    Target& t_;
    std::vector<float> logits_;  // kStepRowsMax, vocab
};

struct Both {
    Both() : runner(target), decoder(runner, test::kContext, &target.shape) {}

    Target target;
    HostRunner runner;
    gpu::Decoder decoder;
};

// The same text on either.
struct Pair {
    Pair(Both& both, bool drafts)
        : cpu(both.target.machine, drafts), gpu(both.decoder.begin(drafts)) {}

    Sequence cpu;
    gpu::Sequence gpu;
};

TEST(GpuDecoder, DoesWhateverTheCpusDoes) {
    Both both;
    Target& t = both.target;
    const uint32_t vocab = t.packed.shape.vocab;
    std::vector<Pair> pairs;
    for (uint32_t i = 0; i < 5; ++i) pairs.emplace_back(both, i != 3);
    uint64_t drawn = 0;
    const auto draw = [&](uint32_t below) {
        return static_cast<uint32_t>(test::splitmix64(77, drawn++) % below);
    };
    // One machine runs both: what the first said is kept.
    std::vector<float> expected;
    const auto keep = [&](std::span<const float> logits) {
        expected.insert(expected.end(), logits.begin(), logits.end());
    };
    const auto is_kept = [&](std::span<const float> logits, size_t row) {
        return std::ranges::equal(logits, std::span(expected).subspan(row * vocab, vocab));
    };
    uint32_t came_back = 0, to_a_mark = 0, drafted = 0;
    for (uint32_t turn = 0; turn < 400; ++turn) {
        Pair& pair = pairs[draw(5)];
        SCOPED_TRACE(turn);
        switch (draw(6)) {
            case 0: {
                // A few rows back, as after a verdict; or anywhere.
                const uint32_t length = pair.cpu.length();
                const uint32_t to =
                    draw(4) > 0 ? length - std::min(length, draw(8)) : draw(length + 1);
                const uint32_t reached = pair.cpu.rewind(to);
                EXPECT_EQ(pair.gpu.rewind(to), reached);
                came_back += reached < length;
                to_a_mark += reached > 0 && reached < to;
                break;
            }
            case 1:
                pair.cpu.mark();
                pair.gpu.mark();
                break;
            case 2:
                if (!pair.cpu.drafts() || pair.cpu.length() == 0) break;
                t.decoder.catch_up(pair.cpu);
                both.decoder.catch_up(pair.gpu);
                t.decoder.draft(pair.cpu, turn % vocab);
                expected.clear();
                for (uint32_t slot = 1; slot < t.shape.block; ++slot)
                    keep(t.decoder.draft_logits(slot));
                both.decoder.draft(pair.gpu, turn % vocab);
                for (uint32_t slot = 1; slot < t.shape.block; ++slot)
                    ASSERT_TRUE(is_kept(both.decoder.draft_logits(slot), slot - 1))
                        << "slot " << slot;
                ++drafted;
                break;
            default: {
                std::vector<std::vector<uint32_t>> texts;
                std::vector<Decoder::Reading> cpu;
                std::vector<gpu::Decoder::Reading> gpu;
                uint32_t rows = 0;
                texts.reserve(pairs.size());
                for (Pair& one : pairs) {
                    const uint32_t room =
                        std::min({test::kContext - one.cpu.length(), kStepRowsMax - rows,
                                  draw(3) > 0 ? draw(12) : draw(64)});
                    if (room == 0) continue;
                    const bool keeps = draw(8) > 0;
                    const auto& text = texts.emplace_back(seeded_tokens(room, vocab, 1000 + drawn));
                    cpu.push_back({&one.cpu, text, keeps});
                    gpu.push_back({&one.gpu, text, keeps});
                    rows += room;
                }
                if (rows == 0) break;
                const uint32_t from = draw(3) > 0 ? 0 : draw(rows);
                t.decoder.read(cpu, from);
                expected.clear();
                for (uint32_t row = from; row < rows; ++row) keep(t.decoder.logits(row));
                const uint32_t live = t.machine.live_experts(), copied = both.runner.copied;
                both.decoder.read(gpu, from);
                for (uint32_t row = from; row < rows; ++row)
                    ASSERT_TRUE(is_kept(both.decoder.logits(row), row - from)) << "row " << row;
                EXPECT_EQ(both.runner.copied - copied, rows - from);
                EXPECT_TRUE(rows > gpu::kRowsMax || both.decoder.live_experts() == live);
                EXPECT_EQ(both.decoder.steps(), (rows + gpu::kRowsMax - 1) / gpu::kRowsMax);
                break;
            }
        }
        for (const Pair& one : pairs) ASSERT_EQ(one.gpu.length(), one.cpu.length());
    }
    EXPECT_GT(came_back, 20u);
    EXPECT_GT(to_a_mark, 5u);
    EXPECT_GT(drafted, 30u);
}

}  // namespace
}  // namespace tessera
