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

// ------------------------------------------------------------------ rounds

RoundsAsk ask_for(uint32_t turn, uint32_t block) {
    RoundsAsk ask;
    ask.temperature = turn % 3 == 0 ? 0 : 0.7f;
    ask.seed = turn;
    ask.drafts = turn % (block + 1) == block ? 0 : turn % (block + 1);
    ask.tokens_max = 1 + turn % 30;
    ask.context = test::kContext;
    return ask;
}

// What is written in rounds by sequences in turns, with all that can come between, stands where a
// text read from the start does: the same logits behind it, and the drafter's.
TEST(GpuDecoder, RoundsLeaveTheSequenceWhereTheTextEnds) {
    Both both;
    const uint32_t vocab = both.target.packed.shape.vocab, block = both.target.shape.block;
    struct Written {
        gpu::Sequence sequence;
        std::vector<uint32_t> text;
    };
    std::vector<Written> all;
    for (uint32_t i = 0; i < 3; ++i) {
        all.push_back({both.decoder.begin(i < 2), seeded_tokens(5 + i, vocab, i)});
        std::vector<uint32_t>& text = all.back().text;
        const gpu::Decoder::Reading prompt{&all.back().sequence,
                                           std::span(text).first(text.size() - 1)};
        both.decoder.read(std::span(&prompt, 1), 0);
    }
    const auto expect_where_the_text_ends = [&](Written& w) {
        if (both.decoder.runs_ahead(w.sequence)) {
            const auto unread = static_cast<uint32_t>(w.text.size()) - 1;
            ASSERT_EQ(w.sequence.rewind(unread), unread);
        }
        const bool drafts = w.sequence.drafts();
        gpu::Sequence anew = both.decoder.begin(drafts);
        for (size_t at = 0; at < w.text.size() - 1; at += kStepRowsMax) {
            const gpu::Decoder::Reading piece{
                &anew, std::span(w.text).subspan(
                           at, std::min<size_t>(kStepRowsMax, w.text.size() - 1 - at))};
            both.decoder.read(std::span(&piece, 1), 0);
        }
        std::vector<float> expected;
        for (gpu::Sequence* const s : {&anew, &w.sequence}) {
            ASSERT_EQ(s->length(), w.text.size() - 1);
            std::vector<float> found;
            if (drafts) {
                both.decoder.catch_up(*s);
                both.decoder.draft(*s, w.text.back());
                for (uint32_t slot = 1; slot < block; ++slot) {
                    const auto logits = both.decoder.draft_logits(slot);
                    found.insert(found.end(), logits.begin(), logits.end());
                }
            }
            const gpu::Decoder::Reading last{s, std::span(&w.text.back(), 1)};
            both.decoder.read(std::span(&last, 1), 0);
            const auto logits = both.decoder.logits(0);
            found.insert(found.end(), logits.begin(), logits.end());
            s->rewind(static_cast<uint32_t>(w.text.size()) - 1);
            if (s == &anew) {
                expected = std::move(found);
            } else {
                EXPECT_EQ(found, expected);
            }
        }
    };
    uint32_t rounds = 0, ahead = 0, ends = 0;
    for (uint32_t turn = 0; turn < 100; ++turn) {
        SCOPED_TRACE(turn);
        Written& w = all[test::splitmix64(5, turn) % all.size()];
        RoundsAsk ask = ask_for(turn, block);
        // Rounds that draft nothing leave nothing for the drafter, which has seen less then.
        ask.drafts = w.sequence.drafts() ? std::max(ask.drafts, 1u) : 0;
        for (uint32_t i = 0; i <= turn % 5; ++i) {
            if (w.text.size() == test::kContext) break;
            const Round round = both.decoder.round(w.sequence, w.text.back(), ask);
            ASSERT_GE(round.count, 1u);
            ASSERT_LE(round.count, round.verified + 1);
            ASSERT_LE(round.verified, round.drafted);
            w.text.insert(w.text.end(), round.tokens, round.tokens + round.count);
            ASSERT_LE(w.text.size(), test::kContext);
            ++rounds;
            ends += round.last;
            ahead += both.decoder.runs_ahead(w.sequence);
        }
        if (turn % 7 == 0) both.decoder.stop_rounds();
        if (turn % 6 == 0 && w.text.size() < test::kContext) expect_where_the_text_ends(w);
        if (w.text.size() + 20 < test::kContext) continue;
        // Full: back to its beginning, whatever runs ahead of it.
        w.text.resize(5);
        const uint32_t kept = w.sequence.rewind(4);
        const gpu::Decoder::Reading again{&w.sequence, std::span(w.text).subspan(kept, 4 - kept)};
        if (kept < 4) both.decoder.read(std::span(&again, 1), 0);
    }
    EXPECT_GT(rounds, 150u);
    EXPECT_GT(ahead, 30u);
    EXPECT_GT(ends, 10u);
}

// A round is what a step at a time would have been: the argmax of logits and noise, as far as the
// rows agree; and none follows where it must not.
TEST(GpuDecoder, RoundsChooseWhatStepsChoose) {
    Both both;
    const uint32_t vocab = both.target.packed.shape.vocab;
    for (uint32_t turn = 0; turn < 12; ++turn) {
        RoundsAsk ask = ask_for(turn, both.target.shape.block);
        ask.depth.whole = turn % 2 == 0;
        if (!ask.depth.whole) {
            ask.depth.rate = 1;
            ask.depth.seconds = {1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7};
            ask.depth.stands.fill(turn % 4 == 1 ? 0.05 : 0.8);
        }
        std::vector<uint32_t> texts[2];
        for (const bool in_rounds : {false, true}) {
            std::vector<uint32_t>& text = texts[in_rounds];
            text = seeded_tokens(6, vocab, turn);
            gpu::Sequence s = both.decoder.begin(in_rounds);
            const gpu::Decoder::Reading prompt{&s, std::span(text).first(5)};
            both.decoder.read(std::span(&prompt, 1), 0);
            while (text.size() < 60) {
                if (in_rounds) {
                    const Round round = both.decoder.round(s, text.back(), ask);
                    text.insert(text.end(), round.tokens, round.tokens + round.count);
                    EXPECT_TRUE(ask.depth.whole || turn % 4 != 1 || round.verified == 0);
                    continue;
                }
                const gpu::Decoder::Reading next{&s, std::span(&text.back(), 1)};
                both.decoder.read(std::span(&next, 1), 0);
                text.push_back(HostRunner::choose(ask, both.decoder.logits(0),
                                                  static_cast<uint32_t>(text.size()), nullptr));
            }
            if (in_rounds && ask.drafts > 0) {
                // The drafter has taken in what it drafted behind.
                s.rewind(static_cast<uint32_t>(text.size()) - 1);
                const uint32_t taken = both.runner.runs[static_cast<uint32_t>(gpu::Pass::context)];
                both.decoder.catch_up(s);
                EXPECT_EQ(both.runner.runs[static_cast<uint32_t>(gpu::Pass::context)], taken);
            }
            text.resize(60);
        }
        EXPECT_EQ(texts[0], texts[1]) << turn;
    }
}

TEST(GpuDecoder, RoundsEndWhereTheyMust) {
    const auto made = [](const RoundsAsk& ask) {
        Both both;
        std::vector<uint32_t> text = seeded_tokens(6, both.target.packed.shape.vocab, 3);
        gpu::Sequence s = both.decoder.begin(true);
        const gpu::Decoder::Reading prompt{&s, std::span(text).first(5)};
        both.decoder.read(std::span(&prompt, 1), 0);
        for (bool last = false; !last;) {
            const Round round = both.decoder.round(s, text.back(), ask);
            text.insert(text.end(), round.tokens, round.tokens + round.count);
            last = round.last;
        }
        return text;
    };
    RoundsAsk ask = ask_for(4, 8);
    ask.tokens_max = 20;
    const std::vector<uint32_t> whole = made(ask);
    EXPECT_GE(whole.size(), 26u);
    EXPECT_LT(whole.size(), 26u + kDepthRows);
    // Behind a token that stops: wherever it comes in the round.
    ask.stops = 2;
    ask.stop[0] = ~0u;
    ask.stop[1] = whole[15];
    const std::vector<uint32_t> stopped = made(ask);
    const auto first = std::ranges::find(whole.begin() + 6, whole.end(), whole[15]);
    EXPECT_GT(stopped.size(), static_cast<size_t>(first - whole.begin()));
    EXPECT_LE(stopped.size(), static_cast<size_t>(first - whole.begin()) + kDepthRows);
    // At the end of the context, to the last token.
    ask.stops = 0;
    ask.context = 17;
    EXPECT_EQ(made(ask).size(), 17u);
    ask.context = 7;
    EXPECT_EQ(made(ask).size(), 7u);
}

}  // namespace
}  // namespace tessera
