// tessera usage: what the ledger adds up to, by day, key and mode.
#include <memory>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "server/ledger.h"

#include "commands.h"
#include "report.h"
#include "store.h"

namespace tessera {
namespace {

struct UsageOptions {
    std::string store, since, until;
    bool json = false;
};

void add_to(UsageRow& total, const UsageRow& row) {
    total.requests += row.requests;
    total.prompt += row.prompt;
    total.cached += row.cached;
    total.completion += row.completion;
    total.cost += row.cost;
}

// `cost_usd` is a text: picodollars are more than a double's digits can hold.
Json sums_json(const UsageRow& row) {
    return {{"requests", row.requests},
            {"prompt_tokens", row.prompt},
            {"cached_tokens", row.cached},
            {"completion_tokens", row.completion},
            {"cost_usd", usd_text(row.cost)}};
}

std::string key_text(const UsageRow& row) {
    if (row.key == kAnonymous) return "(no key)";
    return row.key_name.empty() ? fmt::format("(key {})", row.key) : row.key_name;
}

std::vector<std::string> table_row(std::string day, std::string key, std::string mode,
                                   const UsageRow& row) {
    return {std::move(day),
            std::move(key),
            std::move(mode),
            std::to_string(row.requests),
            std::to_string(row.prompt),
            std::to_string(row.cached),
            std::to_string(row.completion),
            usd_text(row.cost)};
}

void show(const UsageOptions& options) {
    const auto since = given_time(options.since, DayEdge::kBegin, "--since");
    const auto until = given_time(options.until, DayEdge::kEnd, "--until");
    if (since && until && *since >= *until) fail("--until must be later than --since");
    Database store(options.store, Database::Open::kMustExist);
    const std::vector<UsageRow> rows = usage(store, since, until);
    UsageRow total;
    for (const UsageRow& row : rows) add_to(total, row);
    if (options.json) {
        Json all = {{"rows", Json::array()}, {"total", sums_json(total)}};
        for (const UsageRow& row : rows) {
            Json line = sums_json(row);
            line["day"] = row.day;
            line["key"] = row.key;
            line["key_name"] = row.key_name;
            line["mode"] = row.mode;
            all["rows"].push_back(std::move(line));
        }
        fmt::print("{}\n", all.dump(1));
        return;
    }
    if (rows.empty()) {
        spdlog::info("no request in the ledger of {}{}", options.store,
                     since || until ? " in that time" : "");
        return;
    }
    std::vector<std::vector<std::string>> table = {
        {"day", "key", "mode", "requests", "prompt", "cached", "completion", "USD"}};
    for (const UsageRow& row : rows)
        table.push_back(table_row(row.day, key_text(row), row.mode, row));
    table.push_back(table_row("total", "", "", total));
    print_table(table);
}

}  // namespace

void add_usage(CLI::App& program) {
    auto options = std::make_shared<UsageOptions>();
    CLI::App& command =
        *program.add_subcommand("usage", "Sum what was used, by day (UTC), key and mode");
    add_store_option(command, options->store);
    command.add_option("--since", options->since, "Day or time (2026-06-09, 2026-06-09T12:30Z)");
    command.add_option("--until", options->until, "Day or time; the day is included");
    command.add_flag("--json", options->json, "JSON instead of a table");
    command.callback([options] { show(*options); });
}

}  // namespace tessera
