#include "eval_report.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "report.h"

namespace tessera {
namespace {

constexpr uint32_t kPlaces = 16;  // parts of a window that kl_by_place tells apart

// The value below which this share of `sorted` lies.
double quantile(const std::vector<float>& sorted, double share) {
    if (sorted.empty()) return 0;
    const auto at = static_cast<size_t>(share * static_cast<double>(sorted.size()));
    return sorted[std::min(at, sorted.size() - 1)];
}

double mean(const std::vector<float>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) /
           static_cast<double>(std::max<size_t>(1, values.size()));
}

std::vector<float> sorted(std::vector<float> values) {
    std::sort(values.begin(), values.end());
    return values;
}

double share_right(const TasksFound& found, bool TaskFound::*right) {
    return static_cast<double>(std::count_if(found.tasks.begin(), found.tasks.end(),
                                             [&](const TaskFound& t) { return t.*right; })) /
           static_cast<double>(found.tasks.size());
}

Sums total(const TextsFound& found) {
    Sums all;
    for (const Sums& run : found.runs) all += run;
    return all;
}

nlohmann::json interval_json(const Interval& i) {
    nlohmann::json json = {{"value", i.value}};
    if (!std::isnan(i.low)) json.update({{"low", i.low}, {"high", i.high}});
    return json;
}

std::string percent(double share, int digits = 2) {
    return fmt::format("{:.{}f}", 100 * share, digits);
}

std::string interval_text(const Interval& i, double factor, int digits) {
    if (std::isnan(i.low)) return "too little text for an interval";
    return fmt::format("95 % CI {:.{}f} to {:.{}f}", factor * i.low, digits, factor * i.high,
                       digits);
}

std::string texts_sentence(const EvalReport& report) {
    const TextsFound& all = report.texts.back();
    const Sums sums = total(all);
    const std::string on = fmt::format(
        "{:.0f} tokens of {}", sums.tokens,
        report.texts.size() > 1 ? fmt::format("{} suites", report.texts.size() - 1) : all.name);
    if (!report.compares()) {
        const Interval found = bootstrap(all.runs, &Sums::perplexity);
        return fmt::format("{} has a perplexity of {:.3f} ({}), {:.4f} bits a byte, on {}.",
                           report.model, found.value, interval_text(found, 1, 3),
                           sums.bits_per_byte(), on);
    }
    const Interval cost = bootstrap(all.runs, &Sums::cost);
    const std::string interval = interval_text(cost, 100, 2);
    const std::string agrees = fmt::format("agrees with {} on {} % of tokens ({})", report.against,
                                           percent(sums.agreement(), 1), on);
    if (std::isnan(cost.low) || cost.low > 0 || cost.high < 0)
        return fmt::format("{} {} {} % perplexity ({}) and {}.", report.model,
                           cost.value < 0 ? "gains" : "costs", percent(std::abs(cost.value)),
                           cost.value < 0 && !std::isnan(cost.low)
                               ? interval_text({0, -cost.high, -cost.low}, 100, 2)
                               : interval,
                           agrees);
    return fmt::format("{} costs no perplexity that can be told from chance ({} %, {}) and {}.",
                       report.model, percent(cost.value), interval, agrees);
}

std::string tasks_sentence(const EvalReport& report) {
    std::string text;
    for (const TasksFound& found : report.tasks) {
        text += fmt::format("{} answers {} % of {} tasks of {} exactly", report.model,
                            percent(share_right(found, &TaskFound::right), 1), found.tasks.size(),
                            found.name);
        if (report.compares())
            text += fmt::format(", {} {} %", report.against,
                                percent(share_right(found, &TaskFound::standard_right), 1));
        text += ". ";
    }
    if (!text.empty()) text.pop_back();
    return text;
}

}  // namespace

void TextsFound::add(const TextsFound& other) {
    runs.insert(runs.end(), other.runs.begin(), other.runs.end());
    kl.insert(kl.end(), other.kl.begin(), other.kl.end());
    places.insert(places.end(), other.places.begin(), other.places.end());
    gap = std::max(gap, other.gap);
}

std::vector<PlaceKl> kl_by_place(const TextsFound& found, uint32_t window) {
    const uint32_t width = std::max(1u, (window + kPlaces - 1) / kPlaces);
    std::vector<std::vector<float>> parts((window + width - 1) / width);
    for (size_t i = 0; i < found.kl.size(); ++i)
        parts.at(found.places[i] / width).push_back(found.kl[i]);
    std::vector<PlaceKl> places;
    for (uint32_t i = 0; i < parts.size(); ++i) {
        if (parts[i].empty()) continue;
        const std::vector<float> kl = sorted(std::move(parts[i]));
        places.push_back({i * width, static_cast<uint32_t>(kl.size()), mean(kl), quantile(kl, 0.5),
                          quantile(kl, 0.9), quantile(kl, 0.99)});
    }
    return places;
}

std::string sentence(const EvalReport& report) {
    std::string text = report.texts.empty() ? "" : texts_sentence(report);
    const std::string tasks = tasks_sentence(report);
    return text.empty() || tasks.empty() ? text + tasks : text + " " + tasks;
}

void print_report(const EvalReport& report) {
    std::vector<std::vector<std::string>> table = {{"texts", "tokens", "bits/byte", "perplexity"}};
    if (report.compares())
        for (const char* name : {"of the other", "cost %", "95 % CI", "mean KL", "median KL",
                                 "p99 KL", "top-1 equal", "largest gap"})
            table.front().push_back(name);
    for (const TextsFound& found : report.texts) {
        const Sums sums = total(found);
        table.push_back({found.name, fmt::format("{:.0f}", sums.tokens),
                         fmt::format("{:.4f}", sums.bits_per_byte()),
                         fmt::format("{:.4f}", sums.perplexity())});
        if (!report.compares()) continue;
        const Interval cost = bootstrap(found.runs, &Sums::cost);
        const std::vector<float> kl = sorted(found.kl);
        for (const std::string& cell :
             {fmt::format("{:.4f}", std::exp(sums.standard / sums.tokens)), percent(cost.value, 3),
              std::isnan(cost.low) ? std::string("-")
                                   : percent(cost.low, 3) + " to " + percent(cost.high, 3),
              fmt::format("{:.2e}", sums.mean_kl()), fmt::format("{:.2e}", quantile(kl, 0.5)),
              fmt::format("{:.2e}", quantile(kl, 0.99)), percent(sums.agreement()) + " %",
              fmt::format("{:.3f}", found.gap)})
            table.back().push_back(cell);
    }
    if (!report.texts.empty()) print_table(table);
    for (const TasksFound& found : report.tasks) {
        const std::string other =
            report.compares() ? fmt::format(", the other {} %",
                                            percent(share_right(found, &TaskFound::standard_right)))
                              : "";
        fmt::print("{}: {} tasks, {} % right{}\n", found.name, found.tasks.size(),
                   percent(share_right(found, &TaskFound::right)), other);
    }
    fmt::print("\n{}\n", sentence(report));
}

nlohmann::json report_json(const EvalReport& report) {
    nlohmann::json json = {{"origin", origin()},
                           {"model", report.model_summary},
                           {"machine", report.machine},
                           {"window", report.window},
                           {"sentence", sentence(report)},
                           {"texts", nlohmann::json::array()},
                           {"tasks", nlohmann::json::array()}};
    if (report.compares()) json["against"] = report.against_summary;
    for (const TextsFound& found : report.texts) {
        const Sums sums = total(found);
        nlohmann::json one = {
            {"name", found.name},
            {"tokens", sums.tokens},
            {"bytes", sums.bytes},
            {"perplexity", interval_json(bootstrap(found.runs, &Sums::perplexity))},
            {"bits_per_byte", interval_json(bootstrap(found.runs, &Sums::bits_per_byte))}};
        if (report.compares()) {
            const std::vector<float> kl = sorted(found.kl);
            one.update({{"perplexity_against", std::exp(sums.standard / sums.tokens)},
                        {"cost", interval_json(bootstrap(found.runs, &Sums::cost))},
                        {"kl_mean", interval_json(bootstrap(found.runs, &Sums::mean_kl))},
                        {"kl_median", quantile(kl, 0.5)},
                        {"kl_p99", quantile(kl, 0.99)},
                        {"top1_agreement", interval_json(bootstrap(found.runs, &Sums::agreement))},
                        {"logit_gap_max", found.gap}});
            for (const PlaceKl& place : kl_by_place(found, report.window))
                one["kl_by_place"].push_back({{"begin", place.begin},
                                              {"tokens", place.tokens},
                                              {"mean", place.mean},
                                              {"median", place.median},
                                              {"p90", place.p90},
                                              {"p99", place.p99}});
        }
        json["texts"].push_back(one);
    }
    for (const TasksFound& found : report.tasks) {
        nlohmann::json one = {{"name", found.name},
                              {"right", share_right(found, &TaskFound::right)}};
        if (report.compares())
            one["right_against"] = share_right(found, &TaskFound::standard_right);
        for (const TaskFound& task : found.tasks)
            one["tasks"].push_back({{"name", task.name},
                                    {"expected", task.expected},
                                    {"answer", task.answer},
                                    {"right", task.right}});
        json["tasks"].push_back(one);
    }
    for (const WorstToken& w : report.worst)
        json["worst"].push_back({{"where", w.where},
                                 {"before", w.before},
                                 {"token", w.token},
                                 {"against_says", w.standard_says},
                                 {"model_says", w.candidate_says},
                                 {"kl", w.kl}});
    return json;
}

}  // namespace tessera
