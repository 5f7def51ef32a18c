#include "suites.h"

#include <algorithm>
#include <fstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.h"
#include "base/json.h"

namespace tessera {
namespace {

constexpr const char* kExtension = ".jsonl";

std::vector<std::string> names_in(const std::filesystem::path& folder) {
    std::vector<std::string> names;
    if (is_directory(folder)) {
        for (const auto& entry : std::filesystem::directory_iterator(folder))
            if (entry.path().extension() == kExtension) names.push_back(entry.path().stem());
    }
    if (names.empty())
        fail("--suites {}: holds no suite (*{}); those of Tessera are in its bench/suites",
             folder.string(), kExtension);
    std::ranges::sort(names);
    return names;
}

Suite read_suite(const std::filesystem::path& file) {
    Suite suite{file.stem(), {}};
    std::ifstream stream(file);
    uint32_t number = 0;
    for (std::string line; std::getline(stream, line);) {
        const std::string where = fmt::format("{}:{}", file.string(), ++number);
        const Json entry = parse_json(line, where);
        if (!entry.is_object() || !entry.contains("prompt") || !entry["prompt"].is_string() ||
            entry["prompt"].get_ref<const std::string&>().empty())
            fail(R"({}: expected {{"prompt": "a text", …}})", where);
        suite.prompts.push_back(
            {fmt::format("{}:{}", suite.name, number), entry["prompt"].get<std::string>(), {}});
    }
    if (suite.prompts.empty()) fail("{}: holds no prompt", file.string());
    return suite;
}

}  // namespace

std::filesystem::path own_suites() {
    const std::filesystem::path program =
        std::filesystem::read_symlink("/proc/self/exe").parent_path();
    for (const char* where : {"../share/tessera/suites", "../../bench/suites"}) {
        const std::filesystem::path folder = (program / where).lexically_normal();
        if (is_directory(folder)) return folder;
    }
    fail("the suites are not where they were installed (looked beside {}): pass --suites PATH",
         program.string());
}

std::vector<Suite> read_suites(const std::filesystem::path& folder,
                               const std::vector<std::string>& names, uint32_t prompts_max) {
    const std::vector<std::string> known = names_in(folder);
    std::vector<Suite> suites;
    for (const std::string& name : names.empty() ? known : names) {
        if (std::ranges::find(known, name) == known.end())
            fail("--suite {}: no such suite; those known are {}", name, fmt::join(known, ", "));
        Suite suite = read_suite(folder / (name + kExtension));
        const size_t size = suite.prompts.size();
        if (prompts_max > 0 && prompts_max < size) {
            std::vector<Prompt> some;
            for (size_t i = 0; i < prompts_max; ++i)
                some.push_back(std::move(suite.prompts[(2 * i + 1) * size / (2 * prompts_max)]));
            suite.prompts = std::move(some);
        }
        suites.push_back(std::move(suite));
    }
    return suites;
}

void encode_suites(std::vector<Suite>& suites, const Model& model, uint32_t answer_tokens) {
    const uint32_t context = model.info().context_tokens;
    for (Suite& suite : suites) {
        for (Prompt& prompt : suite.prompts) {
            prompt.tokens = model.encode(prompt.text);
            if (prompt.tokens.size() + answer_tokens > context)
                fail(
                    "{} has {} tokens, with -n {} it does not fit the model's context of {}: give "
                    "a "
                    "smaller -n",
                    prompt.name, prompt.tokens.size(), answer_tokens, context);
        }
    }
}

}  // namespace tessera
