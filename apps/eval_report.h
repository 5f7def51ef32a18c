// What `tessera eval` found, and how it is told: a table, JSON, a page, and the sentence that a
// reader may quote.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "judge/score.h"

namespace tessera {

// A token on which the two models were far apart, with the text around it.
struct WorstToken {
    std::string where;  // text and number of the token
    std::string before, token, after;
    std::string standard_says, candidate_says;  // their most likely tokens
    double kl = 0;                              // nats
};

// Texts of one suite, all of them, or every text there was.
struct TextsFound {
    std::string name;
    std::vector<Sums> runs;
    // Only against another model, a token each: KL and its place in the window; the largest gap.
    std::vector<float> kl;
    std::vector<uint32_t> places;
    double gap = 0;

    void add(const TextsFound& other);
};

struct TaskFound {
    std::string name;
    std::string expected, answer;
    bool right = false, standard_right = false;
};
struct TasksFound {
    std::string name;
    std::vector<TaskFound> tasks;
};

struct EvalReport {
    std::string model, against;  // names; `against` is empty without one
    std::string model_summary, against_summary, machine;
    uint32_t window = 0;
    std::vector<TextsFound> texts;  // the last one is all of them, where there are several
    std::vector<TasksFound> tasks;
    std::vector<WorstToken> worst;  // worst first

    bool compares() const { return !against.empty(); }
};

// KL of tokens by their place in the window: from `begin` on, up to the next one's.
struct PlaceKl {
    uint32_t begin, tokens;
    double mean, median, p90, p99;
};
std::vector<PlaceKl> kl_by_place(const TextsFound& found, uint32_t window);

// "MXFP4 costs 0.4 % perplexity (95 % CI 0.2 to 0.6) and agrees on 98.7 % of tokens": what was
// judged, by what, with intervals. A cost whose interval holds zero is said to be none that can be
// told from chance.
std::string sentence(const EvalReport& report);

void print_report(const EvalReport& report);
nlohmann::json report_json(const EvalReport& report);

// One file without scripts or anything from elsewhere. Throws Error if it cannot be written.
void write_page(const EvalReport& report, const std::filesystem::path& file);

}  // namespace tessera
