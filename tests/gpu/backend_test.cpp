// Decoding on a card, through the door: the CPU's tokens within rounding, and of the card itself
// what sessions promise, token for token: speculation changes nothing, nor does company, nor coming
// back. Without a card these are skipped, and say so.
#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/gpu/card.h"
#include "tessera/session.h"

#include "gpu/sized.h"
#include "support/texts.h"

namespace tessera {
namespace {

using test::sized;

using test::kModes;
using test::kOff;
using test::kPrompts;
using test::take;
using test::written;

class OnGpu : public testing::Test {
  protected:
    void SetUp() override {
        if (const std::string why = gpu::no_card(); !why.empty()) GTEST_SKIP() << "no GPU: " << why;
    }
};

Model load(Device device, uint32_t context = 0) {
    LoadOptions options;
    options.device = device;
    options.context = context;
    return Model::load(TESSERA_MODEL, options);
}
const Model& on_gpu() {
    static const Model model = load(Device::kGpu);
    return model;
}
const Model& on_cpu() {
    static const Model model = load(Device::kCpu);
    return model;
}

std::vector<Sampling> samplings() {
    std::vector<Sampling> all(4);
    all[1].temperature = 0.7f;
    all[2].temperature = 1;
    all[3].temperature = 1;
    all[3].top_p = 0.9f;
    for (size_t i = 1; i < all.size(); ++i) all[i].seed = 11 + i;
    return all;
}

// The first of them, as many as there is time for.
std::span<const char* const> prompts(uint32_t emulated) {
    return std::span(kPrompts).first(sized(static_cast<uint32_t>(std::size(kPrompts)), emulated));
}

// After every token of a text the card expects what the CPU expects: the same token, or one whose
// logit on the CPU is less than 0.05 below the best. (A greedy text of its own would say nothing
// behind the first such place.) Where a router is all but undecided, a row gets another expert and
// may differ by more: one of these thousand does, and there the CPU differs as much from itself
// with activations of 8 bits, which agree with the card.
TEST_F(OnGpu, ChoosesTheCpusTokens) {
    ASSERT_EQ(on_gpu().info().drafter, on_cpu().info().drafter);
    uint32_t same = 0, far = 0, all = 0;
    for (const char* prompt : prompts(2)) {
        std::vector<Token> text = on_cpu().encode(prompt);
        const std::vector<Token> answer = written(on_cpu(), prompt, {}, kOff, sized(150, 12));
        text.insert(text.end(), answer.begin(), answer.end());
        std::vector<std::vector<float>> expected;
        const auto best = [](std::span<const float> logits) {
            return static_cast<Token>(std::ranges::max_element(logits) - logits.begin());
        };
        Session cpu(on_cpu(), {}, kOff), gpu(on_gpu(), {}, kOff);
        cpu.append(text, {}, [&](uint32_t, std::span<const float> logits) {
            expected.emplace_back(logits.begin(), logits.end());
        });
        gpu.append(text, {}, [&](uint32_t place, std::span<const float> logits) {
            const std::vector<float>& wanted = expected[place];
            const Token token = best(wanted), found = best(logits);
            same += token == found;
            ++all;
            far += wanted[token] - wanted[found] >= 0.05f;
        });
    }
    EXPECT_GT(all, sized(900, 30));
    EXPECT_LE(far, 1 + all / 500);
    EXPECT_GE(same, all * 49 / 50 - 1);
}

TEST_F(OnGpu, SpeculationChangesNoToken) {
    size_t turn = 0;
    const uint32_t count = sized(60, 5);
    for (const char* prompt : prompts(1)) {
        // Rounds of the card's own, and what the host has to choose, are always among them.
        const std::vector<Sampling> all = samplings();
        for (size_t i = sized(0, 1); i < all.size(); i += sized(1, 2)) {
            const Sampling& sampling = all[i];
            const std::vector<Token> expected = written(on_gpu(), prompt, sampling, kOff, count);
            for (const Speculation& mode : {kModes[turn % 4], kModes[++turn % 4]})
                EXPECT_EQ(written(on_gpu(), prompt, sampling, mode, count), expected)
                    << prompt << ", T " << sampling.temperature << ", max " << mode.max_draft;
        }
    }
}

// A drafter that reads wrong taps or positions drafts, but what it drafts does not stand.
TEST_F(OnGpu, AcceptsWhatTheCpusDrafterWouldHaveAccepted) {
    double tokens_per_step[2];
    for (const Model* const model : {&on_cpu(), &on_gpu()}) {
        Session session(*model, {}, {Speculate::kFixed});
        session.append(model->encode(kPrompts[1]));
        take(session, sized(96, 20));
        tokens_per_step[model == &on_gpu()] = session.stats().tokens_per_step();
    }
    EXPECT_GT(tokens_per_step[1], 0.8 * tokens_per_step[0]);
}

TEST_F(OnGpu, SessionsInOneStepWriteWhatEachWritesAlone) {
    const std::vector<Sampling> all = samplings();
    const uint32_t count = sized(40, 4), texts = sized(6, 2);
    std::vector<Session> sessions;
    std::vector<std::vector<Token>> expected, found(texts);
    for (size_t i = 0; i < texts; ++i) {
        expected.push_back(written(on_gpu(), kPrompts[i], all[i % 4], kOff, count));
        sessions.emplace_back(on_gpu(), all[i % 4], i % 3 == 0 ? kOff : kModes[i % 4]);
        sessions.back().append(on_gpu().encode(kPrompts[i]));
    }
    while (true) {
        std::vector<Session*> stepping;
        for (size_t i = 0; i < texts; ++i)
            if (found[i].size() < count) stepping.push_back(&sessions[i]);
        if (stepping.empty()) break;
        Session::step(stepping);
        for (size_t i = 0; i < texts; ++i)
            while (sessions[i].ready() > 0 && found[i].size() < count)
                found[i].push_back(sessions[i].next());
    }
    EXPECT_EQ(found, expected);
}

TEST_F(OnGpu, ComesBackToAnEarlierTurn) {
    const std::vector<Token> prompt = on_gpu().encode(kPrompts[sized(1, 0)]);
    const std::vector<Token> first = on_gpu().encode("        self.one = 1\n");
    const std::vector<Token> second = on_gpu().encode("        self.two = 2\n");
    Session session(on_gpu(), {});
    session.append(prompt);
    const uint32_t count = sized(150, 3);  // on a card further than any ring remembers
    const std::vector<Token> answer = take(session, count);
    session.append(first);
    take(session, count);
    std::vector<Token> wanted = prompt;
    wanted.insert(wanted.end(), answer.begin(), answer.end());
    wanted.insert(wanted.end(), second.begin(), second.end());
    const uint32_t kept = session.reuse(wanted);
    EXPECT_GE(kept, prompt.size() + answer.size() - 1);
    session.append(std::span(wanted).subspan(kept));
    const std::vector<Token> found = take(session, count);
    Session fresh(on_gpu(), {}, kOff);
    fresh.append(wanted);
    EXPECT_EQ(found, take(fresh, count));
    EXPECT_EQ(session.reuse(on_gpu().encode("Something else")), 0u);
    session.append(prompt);
    EXPECT_EQ(take(session, count), answer);
}

TEST_F(OnGpu, FillsTheContextAndNoMore) {
    const uint32_t context = sized(70, 12);
    const Model model = load(Device::kGpu, context);
    std::vector<std::vector<Token>> texts;
    for (const Speculation& mode : {kOff, kModes[0], kModes[1], kModes[2]}) {
        Session session(model, {}, mode);
        session.append(model.encode(kPrompts[0]));
        std::vector<Token> text;
        while (session.room() > 0) text.push_back(session.next());
        EXPECT_EQ(session.text().size(), context);
        texts.push_back(text);
    }
    for (const std::vector<Token>& text : texts) EXPECT_EQ(text, texts[0]);
}

TEST_F(OnGpu, SaysWhatItReadAndWhere) {
    EXPECT_NE(on_gpu().info().machine.find("GPU, "), std::string::npos);
    Session session(on_gpu(), {}, kOff);
    session.append(on_gpu().encode(kPrompts[0]));
    take(session, sized(20, 10));
    Session cpu(on_cpu(), {}, kOff);
    cpu.append(on_cpu().encode(kPrompts[0]));
    take(cpu, sized(20, 10));
    EXPECT_NEAR(session.stats().experts, cpu.stats().experts, 0.1);
    EXPECT_NEAR(session.stats().bytes / cpu.stats().bytes, 1, 0.02);
}

}  // namespace
}  // namespace tessera
