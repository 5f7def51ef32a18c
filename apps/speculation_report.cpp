#include "speculation_report.h"

#include <algorithm>
#include <array>
#include <functional>

#include <fmt/format.h>

namespace tessera {
namespace {

using Json = nlohmann::json;
using Table = std::vector<std::vector<std::string>>;

constexpr uint32_t kSlots = 7;
constexpr uint32_t kBlockRows = kSlots + 1;

// Prompts by length: below each of these, and the rest.
constexpr std::array<size_t, 2> kLengthEdges = {128, 512};
constexpr std::array<const char*, 3> kLengthNames = {"< 128 tokens", "128 to 511", ">= 512"};

size_t length_class(const Prompt& prompt) {
    size_t found = 0;
    while (found < kLengthEdges.size() && prompt.tokens.size() >= kLengthEdges[found]) ++found;
    return found;
}

bool has_standard(const Measured& m) {
    return m.modes.front().speculation.mode == Speculate::kOff && m.modes.size() > 1;
}

void for_steps(const Measured& m, size_t mode, const std::function<void(const WrittenStep&)>& see) {
    for (const auto& repeat : m.runs[mode])
        for (const Written& text : repeat)
            for (const WrittenStep& step : text.steps) see(step);
}

// Tokens a second over all prompts, by repeats.
Spread rate(const Measured& m, size_t mode) {
    std::vector<double> rates;
    for (const auto& repeat : m.runs[mode]) {
        double tokens = 0, seconds = 0;
        for (const Written& text : repeat) {
            tokens += text.chosen;
            seconds += text.seconds;
        }
        rates.push_back(tokens / seconds);
    }
    return spread_of(rates);
}

// How many times as fast as the standard a prompt's text came: what was written right after one
// another is compared, and of the repeats the median taken.
double ratio(const Measured& m, size_t mode, size_t prompt) {
    std::vector<double> ratios;
    for (size_t repeat = 0; repeat < m.runs[mode].size(); ++repeat)
        ratios.push_back(m.runs[mode][repeat][prompt].tokens_per_second() /
                         m.runs[0][repeat][prompt].tokens_per_second());
    return spread_of(ratios).median;
}

std::vector<double> ratios(const Measured& m, size_t mode) {
    std::vector<double> found;
    for (size_t prompt = 0; prompt < m.suite->prompts.size(); ++prompt)
        found.push_back(ratio(m, mode, prompt));
    return found;
}

// Sums over the steps of a mode.
struct Steps {
    double steps = 0, tokens = 0, rows = 0, ms = 0, draft_ms = 0;
    double blocks = 0, copies = 0;
    // Of steps with a block, by slot: whose draft stood, and that verified it with all before it
    // standing.
    std::array<double, kSlots> stood{}, reached{};

    explicit Steps(const Measured& m, size_t mode) {
        for_steps(m, mode, [&](const WrittenStep& step) {
            ++steps;
            tokens += step.accepted + 1;
            rows += step.rows();
            ms += step.ms;
            draft_ms += step.draft_ms;
            copies += step.drafts == Drafts::copied;
            if (step.drafts != Drafts::block) return;
            ++blocks;
            for (uint32_t slot = 0; slot < step.verified && slot <= step.accepted; ++slot) {
                ++reached[slot];
                stood[slot] += slot < step.accepted;
            }
        });
    }
};

// What a drafted block takes, and a step of all its rows without the drafting.
struct BlockCost {
    Spread draft_ms, step_ms;

    explicit BlockCost(const Measured& m) {
        std::vector<double> drafts, steps;
        for (size_t mode = 0; mode < m.modes.size(); ++mode) {
            for_steps(m, mode, [&](const WrittenStep& step) {
                if (step.drafts == Drafts::block) drafts.push_back(step.draft_ms);
                if (step.rows() == kBlockRows) steps.push_back(step.ms - step.draft_ms);
            });
        }
        draft_ms = spread_of(drafts);
        step_ms = spread_of(steps);
    }
    bool known() const { return draft_ms.median > 0 && step_ms.median > 0; }
    double share() const { return draft_ms.median / step_ms.median; }
};

// ------------------------------------------------------------------ words

std::string percent(double part, double whole) {
    return whole > 0 ? fmt::format("{:.0f} %", 100 * part / whole) : "-";
}

std::string interval_text(const Spread& s) {
    return fmt::format("{:.2f} [{:.2f}, {:.2f}]", s.median, s.low, s.high);
}

std::string temperature_text(const Measured& m) {
    return fmt::format("{:g}", m.temperature);
}

void print_titled(const std::string& title, const Table& table) {
    if (table.size() < 2) return;
    fmt::print("\n{}\n", title);
    print_table(table);
}

Table rates_table(const std::vector<Measured>& all) {
    Table table = {{"suite", "T", "mode", "tokens/s", "low..high", "against off [95 %]", "slowest",
                    "tau", "rows", "block", "copied", "none", "drafting"}};
    for (const Measured& m : all) {
        for (size_t mode = 0; mode < m.modes.size(); ++mode) {
            const Spread speed = rate(m, mode);
            const Steps s(m, mode);
            std::string against = "", slowest = "";
            if (mode > 0 && has_standard(m)) {
                const std::vector<double> found = ratios(m, mode);
                against = interval_text(median_interval(found));
                slowest = fmt::format("{:.2f}", *std::ranges::min_element(found));
            }
            table.push_back(
                {m.suite->name, temperature_text(m), m.modes[mode].name,
                 fmt::format("{:.0f}", speed.median),
                 fmt::format("{:.0f}..{:.0f}", speed.low, speed.high), against, slowest,
                 fmt::format("{:.2f}", s.tokens / s.steps), fmt::format("{:.2f}", s.rows / s.steps),
                 percent(s.blocks, s.steps), percent(s.copies, s.steps),
                 percent(s.steps - s.blocks - s.copies, s.steps), percent(s.draft_ms, s.ms)});
        }
    }
    return table;
}

Table slots_table(const std::vector<Measured>& all) {
    Table table = {{"suite", "T", "mode"}};
    for (uint32_t slot = 1; slot <= kSlots; ++slot) table[0].push_back(fmt::format("{}", slot));
    for (const Measured& m : all) {
        for (size_t mode = 0; mode < m.modes.size(); ++mode) {
            const Steps s(m, mode);
            if (s.blocks == 0) continue;
            std::vector<std::string> row = {m.suite->name, temperature_text(m), m.modes[mode].name};
            for (uint32_t slot = 0; slot < kSlots; ++slot)
                row.push_back(s.reached[slot] > 0
                                  ? fmt::format("{:.2f} {:.2f}", s.stood[slot] / s.blocks,
                                                s.stood[slot] / s.reached[slot])
                                  : "-");
            table.push_back(std::move(row));
        }
    }
    return table;
}

// The ratios of one temperature and mode, by length; `by_length` holds those of a suite, or of all.
using ByLength = std::array<std::vector<double>, kLengthNames.size()>;

void add_ratios(const Measured& m, size_t mode, ByLength& by_length) {
    for (size_t prompt = 0; prompt < m.suite->prompts.size(); ++prompt)
        by_length[length_class(m.suite->prompts[prompt])].push_back(ratio(m, mode, prompt));
}

std::vector<std::string> length_row(std::vector<std::string> row, const ByLength& by_length) {
    for (const std::vector<double>& found : by_length)
        row.push_back(found.empty() ? "-"
                                    : fmt::format("{} of {}", interval_text(median_interval(found)),
                                                  found.size()));
    return row;
}

Table lengths_table(const std::vector<Measured>& all) {
    Table table = {{"suite", "T", "mode"}};
    table[0].insert(table[0].end(), kLengthNames.begin(), kLengthNames.end());
    std::vector<std::pair<std::vector<std::string>, ByLength>> sums;  // over suites
    for (const Measured& m : all) {
        if (!has_standard(m)) continue;
        for (size_t mode = 1; mode < m.modes.size(); ++mode) {
            ByLength own;
            add_ratios(m, mode, own);
            table.push_back(
                length_row({m.suite->name, temperature_text(m), m.modes[mode].name}, own));
            const std::vector<std::string> key = {"all", temperature_text(m), m.modes[mode].name};
            auto sum = std::ranges::find(sums, key, &decltype(sums)::value_type::first);
            if (sum == sums.end()) sum = sums.insert(sum, {key, {}});
            add_ratios(m, mode, sum->second);
        }
    }
    for (const auto& [key, by_length] : sums) table.push_back(length_row(key, by_length));
    return table;
}

Table drafting_table(const std::vector<Measured>& all) {
    Table table = {{"suite", "T", "a block, ms", "8 rows, ms", "share"}};
    for (const Measured& m : all) {
        const BlockCost cost(m);
        if (!cost.known()) continue;
        table.push_back({m.suite->name, temperature_text(m),
                         fmt::format("{:.3f}", cost.draft_ms.median),
                         fmt::format("{:.3f}", cost.step_ms.median),
                         fmt::format("{:.1f} %", 100 * cost.share())});
    }
    return table;
}

// ------------------------------------------------------------------ by rows

struct RowCost {
    std::vector<double> ms;
    double experts = 0;  // sum over steps
};

std::array<RowCost, kBlockRows> costs_by_rows(const Measured& m) {
    std::array<RowCost, kBlockRows> costs;
    for (size_t mode = 0; mode < m.modes.size(); ++mode) {
        for_steps(m, mode, [&](const WrittenStep& step) {
            RowCost& cost = costs[step.rows() - 1];
            cost.ms.push_back(step.ms - step.draft_ms);
            cost.experts += step.experts;
        });
    }
    return costs;
}

Json costs_json(const Measured& m) {
    Json list = Json::array();
    const auto costs = costs_by_rows(m);
    for (uint32_t i = 0; i < kBlockRows; ++i) {
        const auto steps = static_cast<double>(costs[i].ms.size());
        if (costs[i].ms.empty()) continue;
        list.push_back({{"rows", i + 1},
                        {"steps", costs[i].ms.size()},
                        {"experts_per_layer", costs[i].experts / steps},
                        {"ms_per_step", spread_of(costs[i].ms).median}});
    }
    return list;
}

}  // namespace

void print_speculation(const std::vector<Measured>& all) {
    print_titled(
        "tokens/s over all prompts; against off: the median over prompts, each in turns with off; "
        "slowest: of the prompts.\nblock, copied, none: steps by what drafted them; drafting: its "
        "share of the time",
        rates_table(all));
    print_titled(
        "by slot of a block: how many of all blocks kept it; of those that came to it, how many",
        slots_table(all));
    print_titled("against off by length of the prompt: median [95 %] of prompts",
                 lengths_table(all));
    print_titled("a drafted block against the step that verifies all of it", drafting_table(all));
}

void print_costs(const std::vector<Measured>& all) {
    Table table = {
        {"suite", "rows", "steps", "experts a layer", "ms a step", "against 1 row", "a block, ms"}};
    for (const Measured& m : all) {
        const auto costs = costs_by_rows(m);
        const double one = spread_of(costs[0].ms).median, draft = BlockCost(m).draft_ms.median;
        for (uint32_t i = 0; i < kBlockRows; ++i) {
            const RowCost& cost = costs[i];
            if (cost.ms.empty()) continue;
            const double ms = spread_of(cost.ms).median;
            table.push_back(
                {m.suite->name, fmt::format("{}", i + 1), fmt::format("{}", cost.ms.size()),
                 fmt::format("{:.2f}", cost.experts / static_cast<double>(cost.ms.size())),
                 fmt::format("{:.3f}", ms), one > 0 ? fmt::format("{:.2f}", ms / one) : "-",
                 i > 0 ? fmt::format("{:.3f}", draft) : ""});
        }
    }
    print_titled("a step by its rows, without drafting: medians", table);
}

uint64_t hash_of(const std::vector<Measured>& all) {
    uint64_t hash = 0xcbf29ce484222325;
    for (const Measured& m : all)
        for (const Written& text : m.runs.front().front())
            for (uint32_t shift = 0; shift < 64; shift += 8)
                hash = (hash ^ (text.hash >> shift & 255)) * 0x100000001b3u;
    return hash;
}

Json speculation_json(const std::vector<Measured>& all) {
    Json list = Json::array();
    for (const Measured& m : all) {
        Json modes = Json::array();
        for (size_t mode = 0; mode < m.modes.size(); ++mode) {
            const Steps s(m, mode);
            Json slots = Json::array(), texts = Json::array();
            for (uint32_t slot = 0; slot < kSlots && s.blocks > 0; ++slot)
                slots.push_back(
                    {{"kept", s.stood[slot] / s.blocks}, {"came", s.reached[slot] / s.blocks}});
            for (size_t i = 0; i < m.suite->prompts.size(); ++i) {
                Json repeats = Json::array();
                for (const auto& repeat : m.runs[mode])
                    repeats.push_back({{"seconds", repeat[i].seconds},
                                       {"prompt_seconds", repeat[i].prompt_seconds},
                                       {"tokens", repeat[i].chosen},
                                       {"steps", repeat[i].steps.size()}});
                texts.push_back({{"prompt", m.suite->prompts[i].name},
                                 {"prompt_tokens", m.suite->prompts[i].tokens.size()},
                                 {"hash", fmt::format("{:016x}", m.runs[mode][0][i].hash)},
                                 {"repeats", repeats}});
            }
            modes.push_back({{"mode", m.modes[mode].name},
                             {"tokens_per_second", spread_json(rate(m, mode))},
                             {"tokens_per_step", s.tokens / s.steps},
                             {"rows_per_step", s.rows / s.steps},
                             {"steps", s.steps},
                             {"block_steps", s.blocks},
                             {"copied_steps", s.copies},
                             {"drafting_share", s.draft_ms / s.ms},
                             {"slots", slots},
                             {"texts", texts}});
            if (mode > 0 && has_standard(m))
                modes.back()["against_off"] = spread_json(median_interval(ratios(m, mode)));
        }
        const BlockCost cost(m);
        list.push_back({{"suite", m.suite->name},
                        {"temperature", m.temperature},
                        {"draft_ms", cost.draft_ms.median},
                        {"by_rows", costs_json(m)},
                        {"modes", modes}});
    }
    return list;
}

Bars speculation_bars(const std::string& model, const std::vector<Measured>& all) {
    Bars bars{model + ": tokens a second", "tokens a second", {}, {}, {}};
    for (const SpeculationMode& mode : all.front().modes) bars.series.push_back(mode.name);
    for (const Measured& m : all) {
        bars.groups.push_back(fmt::format("{} T={:g}", m.suite->name, m.temperature));
        std::vector<Spread>& values = bars.values.emplace_back();
        for (size_t mode = 0; mode < m.modes.size(); ++mode) values.push_back(rate(m, mode));
    }
    return bars;
}

}  // namespace tessera
