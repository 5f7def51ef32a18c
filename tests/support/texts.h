// Texts that sessions write: prompts that are all different, ways to speculate, and what comes of
// them. For whoever compares the tokens of two ways to write the same text.
#pragma once

#include <string_view>
#include <vector>

#include "tessera/session.h"

namespace tessera::test {

inline constexpr Speculation kOff{Speculate::kOff};
inline constexpr Speculation kModes[] = {
    {Speculate::kAuto}, {Speculate::kFixed}, {Speculate::kFixed, 3}, {Speculate::kAuto, 2}};

inline const char* const kPrompts[] = {
    "def fibonacci(n):",
    "import os\nimport sys\n\nclass Reader:\n    def __init__(self, path):\n",
    "| name | size |\n|---|---|\n| one | 1 |\n| two | 2 |\n",
    "The package can be installed with pip. Once it is",
    "x",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\n# The same again\n"
    "def add(a, b):\n",
};

inline std::vector<Token> take(Session& session, uint32_t count) {
    std::vector<Token> text;
    while (text.size() < count) text.push_back(session.next());
    return text;
}

// The first `count` tokens of an answer.
inline std::vector<Token> written(const Model& model, std::string_view prompt,
                                  const Sampling& sampling, const Speculation& speculation,
                                  uint32_t count) {
    Session session(model, sampling, speculation);
    session.append(model.encode(prompt));
    return take(session, count);
}

}  // namespace tessera::test
