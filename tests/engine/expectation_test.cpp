// What append() shows of each token is what the session itself goes on with.
#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include "tessera/session.h"

namespace tessera {
namespace {

struct Seen {
    std::vector<uint32_t> places;
    std::vector<std::vector<float>> logits;

    Session::Expectation observer() {
        return [this](uint32_t place, std::span<const float> row) {
            places.push_back(place);
            logits.emplace_back(row.begin(), row.end());
        };
    }
};

Token best(const std::vector<float>& logits) {
    return static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

class Expectation : public testing::TestWithParam<Engine> {
  protected:
    static Model load() {
        LoadOptions options;
        options.engine = GetParam();
        options.context = 256;
        options.drafter = false;
        return Model::load(TESSERA_MODEL, options);
    }
};

TEST_P(Expectation, EveryTokenOnceInOrderInPiecesOrAtOnce) {
    const Model model = load();
    std::vector<Token> text = model.encode("def add(a, b):\n    return a + b\n\n\n");
    while (text.size() < 70) text.insert(text.end(), text.begin(), text.begin() + 10);
    text.resize(70);  // more than one step's rows
    Seen whole, pieces;
    Session once(model, {}, {Speculate::kOff}), twice(model, {}, {Speculate::kOff});
    EXPECT_TRUE(once.append(text, {}, whole.observer()));
    twice.append(std::span(text).first(33), {}, pieces.observer());
    twice.append(std::span(text).subspan(33), {}, pieces.observer());
    ASSERT_EQ(whole.places.size(), text.size());
    ASSERT_EQ(pieces.places.size(), text.size());
    for (uint32_t i = 0; i < text.size(); ++i) {
        EXPECT_EQ(whole.places[i], i);
        EXPECT_EQ(pieces.places[i], i < 33 ? i : i - 33);
        EXPECT_EQ(whole.logits[i], pieces.logits[i]) << i;
    }
    EXPECT_EQ(once.next(), best(whole.logits.back()));
}

// After an answer the newest token is unread: it is read first, and not shown.
TEST_P(Expectation, WhatWasSaidBeforeIsNotShown) {
    const Model model = load();
    Session session(model, {}, {Speculate::kOff});
    session.append(model.encode("import os\n"));
    for (int i = 0; i < 3; ++i) session.next();
    Seen seen;
    const std::vector<Token> more = model.encode("\nimport sys");
    session.append(more, {}, seen.observer());
    ASSERT_EQ(seen.places.size(), more.size());
    for (uint32_t i = 0; i < more.size(); ++i) EXPECT_EQ(seen.places[i], i);
    EXPECT_EQ(session.next(), best(seen.logits.back()));
}

INSTANTIATE_TEST_SUITE_P(Of, Expectation, testing::Values(Engine::kCpu, Engine::kReference),
                         [](const auto& test) {
                             return test.param == Engine::kCpu ? "Cpu" : "Reference";
                         });

}  // namespace
}  // namespace tessera
