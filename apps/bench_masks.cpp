// tessera bench masks: what it costs to know which tokens a schema allows. Texts are drawn with
// every allowed token equally likely: no model writes anything as wild.
#include <bit>
#include <chrono>
#include <fstream>
#include <memory>
#include <random>
#include <vector>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json.h"

#include "commands.h"
#include "engine/guide.h"
#include "grammar/schema.h"
#include "report.h"

namespace tessera {
namespace {

struct BenchMasksOptions {
    std::string schemas, tokenizer, samples_file, json;
    uint32_t samples = 50, tokens = 400;
    uint64_t seed = 1;
};

using Clock = std::chrono::steady_clock;
double ms_since(Clock::time_point begun) {
    return 1e3 * std::chrono::duration<double>(Clock::now() - begun).count();
}

constexpr uint32_t kRows = 8;  // of a verified block

struct Row {
    std::string name;
    double compile_ms = 0, first_ms = 0;  // to a program; to the first mask of a program
    std::vector<double> groups_ms;        // kRows masks, each after the token before it
    uint32_t whole = 0, cut = 0;          // texts, cut at --tokens
};

uint32_t nth_token(std::span<const uint64_t> bits, size_t n) {
    for (size_t word = 0; word < bits.size(); ++word) {
        uint64_t rest = bits[word];
        for (; rest != 0 && n > 0; rest &= rest - 1) --n;
        if (rest != 0) return static_cast<uint32_t>(64 * word + std::countr_zero(rest));
    }
    return UINT32_MAX;
}

// One text; its tokens' bytes, empty if it was cut.
std::string write_one(grammar::Matcher& matcher, const grammar::Vocabulary& vocabulary,
                      uint32_t tokens_max, std::mt19937_64& random, Row& row) {
    std::string text;
    double group_ms = 0;
    for (uint32_t i = 0; i < tokens_max; ++i) {
        auto begun = Clock::now();
        const std::span<const uint64_t> allowed = matcher.allowed();
        group_ms += ms_since(begun);
        size_t count = 0;
        for (const uint64_t word : allowed) count += static_cast<size_t>(std::popcount(word));
        // An end that is possible comes one time in four.
        if (matcher.may_end() && (random() % 4 == 0 || count == vocabulary.ends().size())) {
            ++row.whole;
            return text;
        }
        uint32_t token;
        do {
            token = nth_token(allowed, random() % count);
        } while (vocabulary.bytes(token).empty());
        text += vocabulary.bytes(token);
        begun = Clock::now();
        matcher.push(token);
        group_ms += ms_since(begun);
        if (i % kRows == kRows - 1) row.groups_ms.push_back(std::exchange(group_ms, 0));
    }
    ++row.cut;
    return "";
}

double quantile(std::vector<double> values, double share) {
    if (values.empty()) return 0;
    const auto at = static_cast<size_t>(share * static_cast<double>(values.size() - 1));
    std::ranges::nth_element(values, values.begin() + static_cast<ptrdiff_t>(at));
    return values[at];
}

void bench_masks(const BenchMasksOptions& options) {
    std::ifstream file(options.schemas, std::ios::binary);
    if (!file) fail("{}: cannot be read", options.schemas);
    const grammar::Schema table =
        parse_json_in_order(std::string(std::istreambuf_iterator<char>(file), {}), options.schemas);
    const Tokenizer tokenizer =
        Tokenizer::load(options.tokenizer.empty() ? bundled_model() / "tokenizer.json"
                                                  : std::filesystem::path(options.tokenizer));
    auto begun = Clock::now();
    // An end that no text can contain, as a model's end token is none.
    const uint32_t size = tokenizer.vocab_size() + 1;
    const std::vector<uint32_t> ends = {size - 1};
    const auto vocabulary = grammar_vocabulary(tokenizer, ends, size);
    fmt::print("{} tokens, sorted in {:.1f} ms\n", tokenizer.vocab_size(), ms_since(begun));

    std::ofstream samples;
    if (!options.samples_file.empty()) samples.open(options.samples_file);
    std::vector<Row> rows;
    std::mt19937_64 random(options.seed);
    for (const grammar::Schema& given : table.at("understood")) {
        Row row;
        row.name = given.at("name").get<std::string>();
        begun = Clock::now();
        grammar::OrRefusal made = grammar::json_schema(given.at("schema"));
        row.compile_ms = ms_since(begun);
        if (const auto* refusal = std::get_if<grammar::Refusal>(&made))
            fail("{}: {}", row.name, refusal->message);
        const auto program =
            std::make_shared<const grammar::Program>(std::move(std::get<grammar::Program>(made)));
        const auto masks = std::make_shared<grammar::LocalMasks>(program, vocabulary);
        begun = Clock::now();
        grammar::Matcher(masks).allowed();
        row.first_ms = ms_since(begun);
        for (uint32_t i = 0; i < options.samples; ++i) {
            grammar::Matcher matcher(masks);
            const std::string text = write_one(matcher, *vocabulary, options.tokens, random, row);
            if (samples.is_open() && !text.empty())
                samples << Json{{"name", row.name}, {"text", text}}.dump() << "\n";
        }
        rows.push_back(std::move(row));
    }

    std::vector<std::vector<std::string>> words = {
        {"schema", "compile", "first mask", "8 rows p50", "p99", "most", "whole texts"}};
    Row all;
    all.name = "all";
    const auto say = [&](const Row& row) {
        const auto ms = [](double value) { return fmt::format("{:.3f} ms", value); };
        words.push_back({row.name, ms(row.compile_ms), ms(row.first_ms),
                         ms(quantile(row.groups_ms, 0.5)), ms(quantile(row.groups_ms, 0.99)),
                         ms(quantile(row.groups_ms, 1)), fmt::to_string(row.whole)});
    };
    Json figures = Json::array();
    for (const Row& row : rows) {
        say(row);
        all.compile_ms = std::max(all.compile_ms, row.compile_ms);
        all.first_ms = std::max(all.first_ms, row.first_ms);
        all.groups_ms.insert(all.groups_ms.end(), row.groups_ms.begin(), row.groups_ms.end());
        all.whole += row.whole;
        figures.push_back({{"schema", row.name},
                           {"compile_ms", row.compile_ms},
                           {"first_ms", row.first_ms},
                           {"p50_ms", quantile(row.groups_ms, 0.5)},
                           {"p99_ms", quantile(row.groups_ms, 0.99)},
                           {"most_ms", quantile(row.groups_ms, 1)},
                           {"whole", row.whole},
                           {"cut", row.cut}});
    }
    say(all);
    print_table(words);
    if (!options.json.empty())
        write_json({{"origin", origin()},
                    {"tokens", tokenizer.vocab_size()},
                    {"p99_ms", quantile(all.groups_ms, 0.99)},
                    {"schemas", figures}},
                   options.json);
}

}  // namespace

void add_bench_masks(CLI::App& bench) {
    auto options = std::make_shared<BenchMasksOptions>();
    CLI::App& command = *bench.add_subcommand(
        "masks", "What it costs to hold an answer to a schema, for a table of schemas");
    command.add_option("schemas", options->schemas, "tests/grammar/schemas.json, or one like it")
        ->required();
    command.add_option("--tokenizer", options->tokenizer,
                       "A tokenizer.json (default: the bundled model's)");
    command.add_option("--samples", options->samples, "Texts for each schema")
        ->check(CLI::Range(1, 1'000'000))
        ->capture_default_str();
    command.add_option("--tokens", options->tokens, "Of a text, at which it is cut")
        ->check(CLI::Range(1, 1'000'000))
        ->capture_default_str();
    command.add_option("--seed", options->seed, "Same seed, same texts")->capture_default_str();
    command.add_option("--samples-file", options->samples_file,
                       "Write the whole texts to this file, a line of JSON each");
    command.add_option("--json", options->json, "Write all figures to this file");
    command.callback([options] { bench_masks(*options); });
}

}  // namespace tessera
