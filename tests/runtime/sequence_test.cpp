// Sequences that share a machine, go back and come again: a row's logits are bit for bit what they
// are when its sequence is read alone, one token a step, from the start.
#include "runtime/sequence.h"

#include <gtest/gtest.h>

#include "runtime/target.h"

namespace tessera {
namespace {

using test::seeded_tokens;
using test::Target;

// Drafts that were wrong leave nothing: read eight, go back, read what came instead.
TEST(Sequence, ARejectedBlockCostsNothing) {
    Target t;
    const std::vector<uint32_t> tokens = seeded_tokens(130, t.packed.shape.vocab);
    const std::vector<float> expected = t.alone(tokens);
    Sequence sequence(t.machine, true);
    for (uint32_t at = 0; at < tokens.size();) {
        // One to eight tokens stand; the rest of the block is of another text.
        const uint32_t stands =
            std::min<uint32_t>(1 + at % 8, static_cast<uint32_t>(tokens.size()) - at);
        std::vector<uint32_t> block = seeded_tokens(8, t.packed.shape.vocab, at + 100);
        std::copy_n(tokens.begin() + at, stands, block.begin());
        const std::vector<float> found = t.read(sequence, block);
        EXPECT_TRUE(
            std::ranges::equal(t.of_token(found, 0, stands), t.of_token(expected, at, stands)))
            << "at " << at;
        at += stands;
        EXPECT_EQ(sequence.rewind(at), at);
    }
}

TEST(Sequence, SeveralInAStepEqualEachAlone) {
    Target t;
    std::vector<std::vector<uint32_t>> texts;
    std::vector<std::vector<float>> expected, found(5);
    std::vector<Sequence> sequences;
    for (uint32_t i = 0; i < 5; ++i) {
        texts.push_back(seeded_tokens(60 + 17 * i, t.packed.shape.vocab, 40 + i));
        expected.push_back(t.alone(texts.back()));
        sequences.emplace_back(t.machine, i % 2 == 0);
    }
    for (uint32_t turn = 0;; ++turn) {
        std::vector<Decoder::Reading> readings;
        std::vector<uint32_t> who;
        for (uint32_t i = 0; i < 5; ++i) {
            const auto left = static_cast<uint32_t>(texts[i].size()) - sequences[i].length();
            // Different numbers of rows, and not everyone in every step.
            const uint32_t rows = std::min(left, (turn * 5 + i * 3) % 9);
            if (rows == 0) continue;
            readings.push_back(
                {&sequences[i], std::span(texts[i]).subspan(sequences[i].length(), rows)});
            who.push_back(i);
        }
        if (readings.empty()) {
            if (turn > 100) break;
            continue;
        }
        t.decoder.read(readings);
        uint32_t row = 0;
        for (size_t r = 0; r < readings.size(); ++r)
            for (size_t i = 0; i < readings[r].tokens.size(); ++i) t.append(found[who[r]], row++);
    }
    EXPECT_EQ(found, expected);
}

TEST(Sequence, ComesBackToAMark) {
    Target t;
    const std::vector<uint32_t> tokens = seeded_tokens(400, t.packed.shape.vocab);
    const std::vector<float> expected = t.alone(tokens);
    Sequence sequence(t.machine, true);
    t.read(sequence, std::span(tokens).first(50));
    sequence.mark();
    // Other text for longer than any ring remembers.
    for (uint32_t i = 0; i < 6; ++i)
        t.read(sequence, seeded_tokens(40, t.packed.shape.vocab, i + 7));
    EXPECT_EQ(sequence.rewind(50), 50u);
    for (uint32_t at = 50; at < 250; at += 25) {
        EXPECT_TRUE(std::ranges::equal(t.read(sequence, std::span(tokens).subspan(at, 25)),
                                       t.of_token(expected, at, 25)));
        if (at == 100) sequence.mark();
    }
    // Between two marks: to the earlier one.
    EXPECT_EQ(sequence.rewind(160), 125u);
    EXPECT_TRUE(std::ranges::equal(t.read(sequence, std::span(tokens).subspan(125, 30)),
                                   t.of_token(expected, 125, 30)));
    EXPECT_EQ(sequence.rewind(80), 80u - 30u)
        << "the mark at 125 was of a future that did not come";
    EXPECT_EQ(sequence.rewind(20), 20u) << "near enough to the furthest since the mark";
    EXPECT_TRUE(std::ranges::equal(t.read(sequence, std::span(tokens).subspan(20, 30)),
                                   t.of_token(expected, 20, 30)));
}

TEST(Sequence, WithoutAMarkStartsOver) {
    Target t;
    const std::vector<uint32_t> tokens = seeded_tokens(200, t.packed.shape.vocab);
    Sequence sequence(t.machine, false);
    for (uint32_t at = 0; at < 200; at += 50) t.read(sequence, std::span(tokens).subspan(at, 50));
    EXPECT_EQ(sequence.rewind(190), 190u);
    EXPECT_EQ(sequence.rewind(100), 0u);
    EXPECT_EQ(sequence.length(), 0u);
    EXPECT_EQ(t.read(sequence, std::span(tokens).first(10)), t.alone(std::span(tokens).first(10)));
}

TEST(Sequence, ForgetsTheOldestMarks) {
    Target t;
    const std::vector<uint32_t> tokens = seeded_tokens(1100, t.packed.shape.vocab);
    Sequence sequence(t.machine, false);
    for (uint32_t at = 0; at < 1000; at += 50) {
        t.read(sequence, std::span(tokens).subspan(at, 50));
        if (at % 100 == 0) sequence.mark();  // at 50, 150 … 950: ten of them
    }
    EXPECT_EQ(sequence.rewind(320), 250u);
    EXPECT_EQ(sequence.rewind(160), 0u) << "the marks at 50 and 150 made room";
}

// Drafts come from the committed tokens alone: from the same text the same block, whether it was
// read in one go or in blocks that were partly rejected.
TEST(Sequence, DraftsDoNotSeeRejectedRows) {
    Target t;
    const std::vector<uint32_t> tokens = seeded_tokens(40, t.packed.shape.vocab);
    const auto draft = [&](Sequence& sequence) {
        t.decoder.catch_up(sequence);
        t.decoder.draft(sequence, 17);
        std::vector<float> all;
        for (uint32_t slot = 1; slot < 8; ++slot) {
            const std::span<const float> logits = t.decoder.draft_logits(slot);
            all.insert(all.end(), logits.begin(), logits.end());
        }
        return all;
    };
    Sequence plain(t.machine, true), eventful(t.machine, true);
    t.read(plain, tokens);
    for (uint32_t at = 0; at < 40; at += 4) {
        std::vector<uint32_t> block = seeded_tokens(8, t.packed.shape.vocab, at + 100);
        std::copy_n(tokens.begin() + at, 4, block.begin());
        t.read(eventful, block);
        eventful.rewind(at + 4);
        draft(eventful);
    }
    EXPECT_EQ(draft(eventful), draft(plain));
}

// A drafter that missed some rows drafts from what it has.
TEST(Sequence, DraftsAfterAPause) {
    Target t;
    const std::vector<uint32_t> tokens = seeded_tokens(120, t.packed.shape.vocab);
    const auto block = [&](uint32_t missed_to) {
        Sequence sequence(t.machine, true);
        for (uint32_t at = 0; at < 120; at += 10) {
            const Decoder::Reading reading{&sequence, std::span(tokens).subspan(at, 10),
                                           at + 10 > missed_to};
            t.decoder.read(std::span(&reading, 1));
        }
        t.decoder.catch_up(sequence);
        t.decoder.draft(sequence, 17);
        const std::span<const float> logits = t.decoder.draft_logits(1);
        return std::vector<float>(logits.begin(), logits.end());
    };
    const std::vector<float> whole = block(0);
    EXPECT_EQ(block(100), whole) << "what was missed is outside the window of 12";
    EXPECT_NE(block(110), whole);
}

}  // namespace
}  // namespace tessera
