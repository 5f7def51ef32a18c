// tessera keys: who may use a server, what for and how much. The secret of a new key goes to
// stdout, alone and once; everything about it goes to stderr.
#include "server/keys.h"

#include <algorithm>
#include <memory>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"

#include "commands.h"
#include "report.h"
#include "store.h"

namespace tessera {
namespace {

struct KeysOptions {
    std::string store;
    KeyRules rules;
    std::vector<std::string> modes = {"base"};
    std::string valid_from, valid_until;
    std::string key;
    bool json = false;
};

std::string modes_text(const KeyRules& rules) {
    std::vector<std::string_view> names;
    for (const Mode mode : kModes)
        if (rules.allows(mode)) names.push_back(mode_name(mode));
    return fmt::format("{}", fmt::join(names, ","));
}

// What a key is at this moment.
std::string_view state_of(const Key& key, UnixMs now) {
    if (key.revoked) return "revoked";
    if (key.rules.valid_from && now < *key.rules.valid_from) return "not yet";
    if (key.rules.valid_until && now >= *key.rules.valid_until) return "expired";
    return "valid";
}

void create(const KeysOptions& options) {
    KeyRules rules = options.rules;
    const auto asked = [&](Mode mode) {
        return std::ranges::find(options.modes, mode_name(mode)) != options.modes.end();
    };
    for (const std::string& mode : options.modes)
        if (!mode_of(mode)) fail("--modes: expected base, ultraspeed or both, found {}", mode);
    rules.base = asked(Mode::kBase);
    rules.ultraspeed = asked(Mode::kUltraspeed);
    rules.valid_from = given_time(options.valid_from, DayEdge::kBegin, "--valid-from");
    rules.valid_until = given_time(options.valid_until, DayEdge::kEnd, "--valid-until");
    Database store(options.store);
    const NewKey key = create_key(store, rules, unix_ms_now());
    fmt::print("{}\n", key.secret);
    spdlog::info("key {} ({}) for {}: shown this once, only its hash is kept", key.id, rules.name,
                 modes_text(rules));
}

Json key_json(const Key& key, UnixMs now) {
    const auto time = [](std::optional<UnixMs> at) { return at ? Json(time_text(*at)) : Json(); };
    return {{"id", key.id},
            {"name", key.rules.name},
            {"modes", {{"base", key.rules.base}, {"ultraspeed", key.rules.ultraspeed}}},
            {"state", state_of(key, now)},
            {"created", time_text(key.created)},
            {"revoked", time(key.revoked)},
            {"valid_from", time(key.rules.valid_from)},
            {"valid_until", time(key.rules.valid_until)},
            {"requests_per_minute", key.rules.requests_per_minute},
            {"tokens_per_minute", key.rules.tokens_per_minute},
            {"concurrency", key.rules.concurrency}};
}

void list(const KeysOptions& options) {
    Database store(options.store, Database::Open::kMustExist);
    const UnixMs now = unix_ms_now();
    const std::vector<Key> keys = all_keys(store);
    if (options.json) {
        Json all = Json::array();
        for (const Key& key : keys) all.push_back(key_json(key, now));
        fmt::print("{}\n", all.dump(1));
        return;
    }
    if (keys.empty()) {
        spdlog::info("{} has no keys; tessera keys create makes one", options.store);
        return;
    }
    const auto time = [](std::optional<UnixMs> at) { return at ? time_text(*at) : "-"; };
    const auto limit = [](uint32_t value) { return value > 0 ? std::to_string(value) : "-"; };
    std::vector<std::vector<std::string>> rows = {{"name", "id", "state", "modes", "valid from",
                                                   "valid until", "requests/min", "tokens/min",
                                                   "concurrent"}};
    for (const Key& key : keys) {
        const KeyRules& rules = key.rules;
        rows.push_back({rules.name, std::to_string(key.id), std::string(state_of(key, now)),
                        modes_text(rules), time(rules.valid_from), time(rules.valid_until),
                        limit(rules.requests_per_minute), limit(rules.tokens_per_minute),
                        limit(rules.concurrency)});
    }
    print_table(rows);
}

void revoke(const KeysOptions& options) {
    Database store(options.store, Database::Open::kMustExist);
    const Key key = revoke_key(store, options.key, unix_ms_now());
    spdlog::info("key {} ({}) is revoked; a running server refuses it within a second", key.id,
                 key.rules.name);
}

void add_create(CLI::App& keys) {
    auto options = std::make_shared<KeysOptions>();
    CLI::App& command = *keys.add_subcommand("create", "Make a key and print its secret, once");
    add_store_option(command, options->store);
    command.add_option("--name", options->rules.name, "Whose key it is")->required();
    command
        .add_option("--modes", options->modes,
                    "What it may use: base, ultraspeed, or both with a comma")
        ->delimiter(',')
        ->capture_default_str();
    command.add_option("--valid-from", options->valid_from,
                       "Day or time (2026-06-09, 2026-06-09T12:30Z) from which it holds");
    command.add_option("--valid-until", options->valid_until,
                       "Day or time until which it holds; the day is included");
    command
        .add_option("--requests-per-minute", options->rules.requests_per_minute,
                    "0: as many as there are")
        ->capture_default_str();
    command
        .add_option("--tokens-per-minute", options->rules.tokens_per_minute,
                    "Prompt and completion together; 0: as many as there are")
        ->capture_default_str();
    command
        .add_option("--concurrency", options->rules.concurrency,
                    "Requests at the same time; 0: as many as there are")
        ->capture_default_str();
    command.callback([options] { create(*options); });
}

void add_list(CLI::App& keys) {
    auto options = std::make_shared<KeysOptions>();
    CLI::App& command = *keys.add_subcommand("list", "Show all keys, never their secrets");
    add_store_option(command, options->store);
    command.add_flag("--json", options->json, "JSON instead of a table");
    command.callback([options] { list(*options); });
}

void add_revoke(CLI::App& keys) {
    auto options = std::make_shared<KeysOptions>();
    CLI::App& command = *keys.add_subcommand("revoke", "End a key for good");
    add_store_option(command, options->store);
    command.add_option("key", options->key, "Its number or its name")->required();
    command.callback([options] { revoke(*options); });
}

}  // namespace

// Options of their own for each command: CLI11 sets those of all three from the environment,
// whichever was called.
void add_keys(CLI::App& program) {
    CLI::App& keys =
        *program.add_subcommand("keys", "Make, show and revoke the API keys of a server");
    keys.require_subcommand(1);
    add_create(keys);
    add_list(keys);
    add_revoke(keys);
}

}  // namespace tessera
