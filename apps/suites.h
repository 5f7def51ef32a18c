// The prompts of bench/suites: texts by kind, each with the name by which a report calls it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "tessera/model.h"

namespace tessera {

struct Prompt {
    std::string name;  // suite:line
    std::string text;
    std::vector<Token> tokens;  // after encode_suites()
};

struct Suite {
    std::string name;
    std::vector<Prompt> prompts;
};

// The folder that comes with the sources. Throws Error if it is not there.
std::filesystem::path own_suites();

// `names`, all of the folder if there are none; of each `prompts_max` prompts (0: all), evenly from
// the whole suite, since prompts are sorted by length. Throws Error: an unknown name, a line that
// is none of a suite.
std::vector<Suite> read_suites(const std::filesystem::path& folder,
                               const std::vector<std::string>& names, uint32_t prompts_max);

// Throws Error if a prompt and an answer of so many tokens do not fit the model's context.
void encode_suites(std::vector<Suite>& suites, const Model& model, uint32_t answer_tokens);

}  // namespace tessera
