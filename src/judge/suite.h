// What a model is judged on, as JSON lines from strangers: texts to foresee, or tasks with the
// answer that is expected.
//
//     {"text": "…"}  or  {"prompt": "…"}                               a text
//     {"prompt": "…", "expected": "…", "stop": "…" or ["…", …]}        a task
//
// Other keys are somebody's notes. A file holds the one or the other.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tessera {

struct JudgedText {
    std::string name;  // suite:line
    std::string text;
};

struct JudgedTask {
    std::string name;
    std::string prompt, expected;
    std::vector<std::string> stops;  // the answer ends before any of these
};

struct JudgedSuite {
    std::string name;
    std::vector<JudgedText> texts;
    std::vector<JudgedTask> tasks;  // either is empty
};

// Throws Error naming `source` and the line.
JudgedSuite parse_judged_suite(std::string_view lines, std::string_view name,
                               std::string_view source);

// Whether an answer that ended at a stop, or went on, is right: it is `expected` where the task has
// stops, and begins with it where it has none.
bool is_right(const JudgedTask& task, std::string_view answer);

}  // namespace tessera
