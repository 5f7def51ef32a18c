// Speculation at the door, with the bundled model and its drafter: the same text token for token,
// alone or in company, after coming back to an earlier turn, and at every kind of end.
// `tessera bench speculation --lossless` is the long form.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "checkpoint/scratch_folder.h"
#include "tessera/session.h"

#include "support/texts.h"

namespace tessera {
namespace {

using test::kModes;
using test::kOff;
using test::kPrompts;
using test::take;
using test::written;

const Model& bundled() {
    static const Model model = Model::load(TESSERA_MODEL);
    return model;
}

std::vector<Sampling> samplings() {
    std::vector<Sampling> all(7);
    all[1].temperature = 0.7f;
    for (size_t i = 2; i < all.size(); ++i) all[i].temperature = 1;
    all[3].temperature = 1.3f;
    all[4].top_p = 0.9f;
    all[5].top_k = 40;
    all[6].min_p = 0.05f;
    for (size_t i = 0; i < all.size(); ++i) all[i].seed = 11 + i;
    return all;
}

TEST(Speculation, TheBundledModelHasADrafter) {
    EXPECT_THAT(bundled().info().drafter, testing::HasSubstr("DFlash"));
    LoadOptions without;
    without.drafter = false;
    EXPECT_EQ(Model::load(TESSERA_MODEL, without).info().drafter, "");
}

TEST(Speculation, ChangesNoToken) {
    size_t turn = 0;
    for (const char* prompt : kPrompts) {
        for (const Sampling& sampling : samplings()) {
            const std::vector<Token> expected = written(bundled(), prompt, sampling, kOff, 40);
            // Two of the four in turn: the long form has all of all.
            for (const Speculation& mode : {kModes[turn % 4], kModes[++turn % 4]})
                EXPECT_EQ(written(bundled(), prompt, sampling, mode, 40), expected)
                    << prompt << ", T " << sampling.temperature << ", max " << mode.max_draft;
        }
    }
}

// Of the bundled drafter's block only four rows: three slots, whatever is asked for.
TEST(Speculation, ABlockMayBeShorterThanAStep) {
    const test::ScratchFolder folder;
    std::filesystem::copy(TESSERA_MODEL, folder.path() / "model",
                          std::filesystem::copy_options::recursive);
    const std::filesystem::path config = folder.path() / "model" / "dflash" / "config.json";
    std::ifstream in(config);
    Json changed = Json::parse(in);
    changed["block_size"] = changed["dflash_config"]["block_size"] = 4;
    std::ofstream(config) << changed;
    const Model model = Model::load(folder.path() / "model");
    const std::vector<Token> prompt = model.encode(kPrompts[1]);
    std::vector<std::vector<Token>> texts;
    for (const Speculation& mode : {kOff, Speculation{Speculate::kFixed}, Speculation{}}) {
        Session session(model, {}, mode);
        session.append(prompt);
        texts.push_back(take(session, 40));
        EXPECT_EQ(session.stats().verified[3], 0u);
    }
    EXPECT_EQ(texts[1], texts[0]);
    EXPECT_EQ(texts[2], texts[0]);
}

TEST(Speculation, AcceptsWhatItDrafts) {
    Session session(bundled(), {}, {Speculate::kFixed});
    session.append(bundled().encode(kPrompts[1]));
    take(session, 96);
    const Stats& stats = session.stats();
    EXPECT_EQ(stats.tokens, 96u);
    EXPECT_EQ(stats.drafted + 1, stats.steps + 1);
    EXPECT_GT(stats.tokens_per_step(), 3.0) << "a train and serve mismatch shows here first";
    EXPECT_GT(stats.draft_seconds, 0);
    EXPECT_GE(stats.accepted[0], stats.accepted[6]);
}

TEST(Speculation, OffDraftsNothing) {
    Session session(bundled(), {}, kOff);
    session.append(bundled().encode(kPrompts[1]));
    take(session, 40);
    EXPECT_EQ(session.stats().drafted + session.stats().copied, 0u);
    EXPECT_EQ(session.stats().steps, 39u);  // the first token needs no step
}

// ------------------------------------------------------------------------------------- company

TEST(Speculation, SessionsInOneStepWriteWhatEachWritesAlone) {
    const std::vector<Sampling> all = samplings();
    std::vector<Session> sessions;
    std::vector<std::vector<Token>> expected, found(6);
    for (size_t i = 0; i < 6; ++i) {
        expected.push_back(written(bundled(), kPrompts[i], all[i], kOff, 30));
        sessions.emplace_back(bundled(), all[i], i % 3 == 0 ? kOff : kModes[i % 4]);
        sessions.back().append(bundled().encode(kPrompts[i]));
    }
    while (true) {
        // Whoever has written enough leaves; the others go on in ever smaller company.
        std::vector<Session*> stepping;
        for (size_t i = 0; i < 6; ++i)
            if (found[i].size() < 30) stepping.push_back(&sessions[i]);
        if (stepping.empty()) break;
        Session::step(stepping);
        for (size_t i = 0; i < 6; ++i) {
            EXPECT_TRUE(found[i].size() >= 30 || sessions[i].ready() > 0);
            while (sessions[i].ready() > 0 && found[i].size() < 30)
                found[i].push_back(sessions[i].next());
        }
    }
    EXPECT_EQ(found, expected);
}

// ---------------------------------------------------------------------------------- turns

TEST(Speculation, ATurnDropsWhatNobodyHasSeen) {
    const std::vector<Token> prompt = bundled().encode(kPrompts[0]);
    const std::vector<Token> turn = bundled().encode("\n# now another:\n");
    // One that takes three tokens of a block, and one that never drafted.
    std::vector<std::vector<Token>> answers;
    for (const Speculation& mode : {Speculation{Speculate::kFixed}, kOff}) {
        Session session(bundled(), {}, mode);
        session.append(prompt);
        take(session, 4);
        session.append(turn);
        EXPECT_EQ(session.ready(), 0u);
        EXPECT_EQ(session.text().size(), prompt.size() + 4 + turn.size());
        answers.push_back(take(session, 24));
        EXPECT_EQ(session.stats().tokens, 28u);
    }
    EXPECT_EQ(answers[0], answers[1]);
}

TEST(Speculation, ComesBackToAnEarlierTurn) {
    const std::vector<Token> prompt = bundled().encode(kPrompts[1]);
    const std::vector<Token> first = bundled().encode("        self.one = 1\n");
    const std::vector<Token> second = bundled().encode("        self.two = 2\n");
    Session session(bundled(), {});
    session.append(prompt);
    const std::vector<Token> answer = take(session, 150);  // further than any ring remembers
    session.append(first);
    take(session, 150);
    // The conversation as a client sends it again, with another last turn.
    std::vector<Token> wanted = prompt;
    wanted.insert(wanted.end(), answer.begin(), answer.end());
    wanted.insert(wanted.end(), second.begin(), second.end());
    const uint32_t kept = session.reuse(wanted);
    EXPECT_GE(kept, prompt.size() + answer.size() - 1) << "all but the newest token was read there";
    EXPECT_TRUE(std::ranges::equal(session.text(), std::span(wanted).first(kept)));
    session.append(std::span(wanted).subspan(kept));
    const std::vector<Token> found = take(session, 40);

    Session fresh(bundled(), {}, kOff);
    fresh.append(wanted);
    EXPECT_EQ(found, take(fresh, 40));
    // Nothing in common: from the start.
    EXPECT_EQ(session.reuse(bundled().encode("Something else")), 0u);
    session.append(prompt);
    EXPECT_EQ(take(session, 150), answer);
    // All of it in common: one token is read again.
    const std::vector<Token> text(session.text().begin(), session.text().end());
    EXPECT_LT(session.reuse(text), text.size());
}

// ---------------------------------------------------------------------------------- ends

TEST(Speculation, FillsTheContextAndNoMore) {
    LoadOptions small;
    small.context = 70;
    const Model model = Model::load(TESSERA_MODEL, small);
    std::vector<std::vector<Token>> texts;
    for (const Speculation& mode : {kOff, kModes[0], kModes[1], kModes[2]}) {
        Session session(model, {}, mode);
        session.append(model.encode(kPrompts[0]));
        std::vector<Token> text;
        while (session.room() > 0) text.push_back(session.next());
        EXPECT_EQ(session.text().size(), 70u);
        texts.push_back(text);
    }
    for (const std::vector<Token>& text : texts) EXPECT_EQ(text, texts[0]);
}

// What a caller does at an end: it stops asking. Blocks reach beyond, and nobody hears of it.
TEST(Speculation, AnEndInsideABlockIsAnEnd) {
    // A text whose token `end` comes only once, somewhere inside a block of the fixed mode.
    const std::vector<Token> whole = written(bundled(), kPrompts[1], {}, kOff, 60);
    for (const uint32_t end : {1u, 7u, 8u, 9u, 23u}) {
        Session session(bundled(), {}, {Speculate::kFixed});
        session.append(bundled().encode(kPrompts[1]));
        const std::vector<Token> text = take(session, end);
        EXPECT_TRUE(std::ranges::equal(text, std::span(whole).first(end)));
        EXPECT_EQ(session.stats().tokens, end);
        EXPECT_EQ(session.text().size(), bundled().encode(kPrompts[1]).size() + end);
        EXPECT_EQ(session.stats().hash, [&] {
            Session off(bundled(), {}, kOff);
            off.append(bundled().encode(kPrompts[1]));
            take(off, end);
            return off.stats().hash;
        }());
    }
}

TEST(Speculation, ABrokenOffPromptCanGoOn) {
    const std::vector<Token> prompt = bundled().encode(std::string(600, 'a') + " = 1\n");
    ASSERT_GT(prompt.size(), 130u);
    Session session(bundled(), {});
    EXPECT_FALSE(session.append(prompt, [] { return false; }));
    const auto read = static_cast<uint32_t>(session.text().size());
    EXPECT_LT(read, prompt.size());
    Session other(bundled(), {}, kOff);
    other.append(std::span(prompt).first(read));
    EXPECT_EQ(take(session, 12), take(other, 12));
}

}  // namespace
}  // namespace tessera
