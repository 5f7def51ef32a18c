// The card's decoder without a card: the CPU machine runs its steps. What it reads, drafts and
// comes back to is bit for bit what the CPU's decoder does; and its steps are such as a card takes.
#include <gtest/gtest.h>

#include "runtime/gpu/decoder.h"
#include "runtime/host_runner.h"
#include "runtime/target.h"

namespace tessera {
namespace {

using test::HostRunner;
using test::seeded_tokens;
using test::Target;

struct Both {
    Both() : runner(target.machine), decoder(runner, test::kContext, &target.shape) {}

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
