// What a server asks of a session: prompts read in pieces, one memory for many answers, penalties
// and likelihoods, each of which leaves the tokens as they are alone.
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tessera/session.h"

namespace tessera {
namespace {

constexpr uint32_t kTokens = 24;  // of a text
constexpr Speculation kOff = {Speculate::kOff, 7};

const Model& bundled() {
    static const Model model = Model::load(TESSERA_MODEL);
    return model;
}

std::vector<Token> prompt() {
    std::string text = "class Stack:\n";
    for (int i = 0; i < 12; ++i)
        text += "    def method_" + std::to_string(i) + "(self):\n        return self.items\n";
    return bundled().encode(text);
}

std::vector<Token> write_text(Session& session) {
    std::vector<Token> text;
    while (text.size() < kTokens) text.push_back(session.next());
    return text;
}

Sampling sampled(uint64_t seed) {
    Sampling sampling;
    sampling.temperature = 0.9f;
    sampling.seed = seed;
    return sampling;
}

std::vector<Token> alone(const std::vector<Token>& tokens, const Sampling& sampling) {
    Session session(bundled(), sampling, kOff);
    session.append(tokens);
    return write_text(session);
}

TEST(Pieces, AreTheWholePrompt) {
    const std::vector<Token> tokens = prompt();
    ASSERT_GT(tokens.size(), 129u);
    Session session(bundled(), sampled(1));
    session.begin(tokens);
    uint32_t pieces = 1;
    while (!session.read_on()) ++pieces;
    EXPECT_EQ(pieces, (tokens.size() + 63) / 64);
    EXPECT_EQ(session.stats().prompt_tokens, tokens.size());
    EXPECT_EQ(write_text(session), alone(tokens, sampled(1)));
}

TEST(Pieces, OthersStepInBetween) {
    const std::vector<Token> tokens = prompt();
    Session running(bundled(), sampled(2));
    running.append(bundled().encode("def add(a, b):"));
    Session arriving(bundled(), sampled(1));
    arriving.begin(tokens);
    std::vector<Token> text;
    while (!arriving.read_on()) text.push_back(running.next());
    EXPECT_EQ(write_text(arriving), alone(tokens, sampled(1)));
    while (text.size() < kTokens) text.push_back(running.next());
    EXPECT_EQ(text, alone(bundled().encode("def add(a, b):"), sampled(2)));
}

TEST(Restart, AnswersAgainWithOtherSamplingOnTheSameMemory) {
    const std::vector<Token> tokens = prompt();
    Session session(bundled(), sampled(1));
    session.append(tokens);
    EXPECT_EQ(write_text(session), alone(tokens, sampled(1)));
    for (const Speculation& speculation :
         {kOff, Speculation{}, Speculation{Speculate::kFixed, 7}}) {
        session.restart(sampled(5), speculation);
        const uint32_t kept = session.reuse(tokens);
        EXPECT_GT(kept, 0u);
        EXPECT_EQ(session.stats().tokens, 0u);
        session.append(std::span(tokens).subspan(kept));
        EXPECT_EQ(session.stats().prompt_tokens, tokens.size() - kept);
        EXPECT_EQ(write_text(session), alone(tokens, sampled(5)));
    }
}

TEST(Restart, ContinuesAConversation) {
    std::vector<Token> tokens = prompt();
    Session session(bundled(), sampled(1));
    session.append(tokens);
    const std::vector<Token> answer = write_text(session);
    tokens.insert(tokens.end(), answer.begin(), answer.end());
    const uint32_t known = static_cast<uint32_t>(tokens.size());
    const std::vector<Token> more = bundled().encode("\n\ndef main():");
    tokens.insert(tokens.end(), more.begin(), more.end());
    session.restart(sampled(2), {});
    EXPECT_EQ(session.reuse(tokens), known);
    session.append(more);
    EXPECT_EQ(write_text(session), alone(tokens, sampled(2)));
}

TEST(Restart, AfterAPromptThatWasBrokenOff) {
    const std::vector<Token> tokens = prompt();
    Session session(bundled(), sampled(1));
    session.begin(tokens);
    EXPECT_FALSE(session.read_on());
    session.restart(sampled(3), {});
    EXPECT_EQ(session.text().size(), 64u);
    EXPECT_EQ(session.reuse(tokens), 64u);
    session.append(std::span(tokens).subspan(64));
    EXPECT_EQ(write_text(session), alone(tokens, sampled(3)));
}

TEST(Restart, WithoutMemoryForADrafterStaysWithoutOne) {
    Session session(bundled(), {}, kOff);
    session.restart({}, {Speculate::kFixed, 7});
    session.append(prompt());
    write_text(session);
    EXPECT_EQ(session.stats().drafted, 0u);
}

TEST(Penalties, MakeRepetitionRareAndDoNotDependOnDrafts) {
    Sampling sampling;
    sampling.presence_penalty = 2;
    sampling.frequency_penalty = 2;
    const auto distinct = [](const std::vector<Token>& text) {
        return std::set<Token>(text.begin(), text.end()).size();
    };
    const std::vector<Token> penalized = alone(prompt(), sampling);
    EXPECT_GT(distinct(penalized), distinct(alone(prompt(), {})));
    for (const uint32_t drafts : {1u, 7u}) {
        Session session(bundled(), sampling, {Speculate::kFixed, drafts});
        session.append(prompt());
        EXPECT_EQ(write_text(session), penalized);
        // They count what the answer says, not what the one before said.
        session.restart(sampling, {Speculate::kFixed, drafts});
        const std::vector<Token> again = prompt();
        session.append(std::span(again).subspan(session.reuse(again)));
        EXPECT_EQ(write_text(session), penalized);
    }
}

TEST(Likelihood, IsOfEachTokenAndTheSameWithDrafts) {
    static constexpr uint32_t kTop = 5;
    const auto watched = [](const Speculation& speculation) {
        Session session(bundled(), {}, speculation);
        session.append(prompt());
        session.watch_likelihood(kTop);
        std::vector<Likelihood> all;
        for (uint32_t i = 0; i < kTokens; ++i) {
            const Token token = session.next();
            const Likelihood& l = session.likelihood();
            EXPECT_EQ(l.top_count, kTop);
            EXPECT_EQ(l.top[0].token, token) << "greedy";
            EXPECT_EQ(l.top[0].log_probability, l.log_probability);
            double sum = 0;
            for (uint32_t k = 0; k < kTop; ++k) {
                sum += std::exp(l.top[k].log_probability);
                if (k == 0) continue;
                EXPECT_LE(l.top[k].log_probability, l.top[k - 1].log_probability);
            }
            EXPECT_GT(sum, 0);
            EXPECT_LE(sum, 1.0001);
            all.push_back(l);
        }
        return all;
    };
    const auto plain = watched(kOff), drafted = watched({Speculate::kFixed, 7});
    for (uint32_t i = 0; i < kTokens; ++i) {
        EXPECT_EQ(plain[i].log_probability, drafted[i].log_probability);
        for (uint32_t k = 0; k < kTop; ++k)
            EXPECT_EQ(plain[i].top[k].token, drafted[i].top[k].token);
    }
}

}  // namespace
}  // namespace tessera
