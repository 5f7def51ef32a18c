// The settings, and which source of them wins. The file's own format is config_file.cpp's.
#include "server/config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "base/check.h"
#include "base/error.h"

namespace tessera {
namespace {

constexpr double kCountMax = 1e9;  // of what has no reason to end earlier
constexpr double kBytesMax = 1e12;
constexpr double kSecondsMax = 86'400;

using C = ServerConfig;

const auto& table() {
    static const std::array kSettings = {
        Setting{"host", &C::host, "Address to listen on; 0.0.0.0 or :: for all of them"},
        Setting{"port", &C::port, "Port to listen on; 0: any free one", 0, 65'535},
        Setting{"model", &C::model, "Folder of the checkpoint (default: the bundled model)"},
        Setting{"model_id", &C::model_id,
                "What clients call the model (default: its folder's name)"},
        Setting{"store", &C::store,
                "Database of keys and ledger (default: none, everybody may come in)"},
        Setting{"keys_required", &C::keys_required, "Refuse everybody while the store has no key"},
        Setting{"metrics_public", &C::metrics_public, "Show /metrics without a key"},
        Setting{"log", &C::log, "Lines on stderr: plain or json", 0, 0, {"plain", "json"}},
        Setting{"engine.context", &C::context,
                "Tokens of prompt and answer at most (0: the model's, up to 32768)", 0, kCountMax},
        Setting{"engine.threads", &C::threads, "Workers (0: all cores allowed)", 0, 1024},
        Setting{"engine.ranks", &C::ranks, "Groups of workers with weights of their own", 1, 8},
        Setting{"engine.isa", &C::isa, "Instructions (default: the fastest here)"},
        Setting{"engine.activations",
                &C::activations,
                "What experts multiply with: bf16, or int8, faster and less exact",
                0,
                0,
                {"bf16", "int8"}},
        Setting{"limits.sequences_max", &C::sequences_max, "Requests that advance in one step", 1,
                1024},
        Setting{"limits.queue_max", &C::queue_max, "Requests that wait; more are answered 429", 0,
                kCountMax},
        Setting{"limits.prefill_chunk", &C::prefill_chunk,
                "Prompt tokens read between two steps of the others", 1, 65'536},
        Setting{"limits.cache_tokens", &C::cache_tokens,
                "Tokens of finished conversations kept for reuse", 0, kCountMax},
        Setting{"limits.completion_default", &C::completion_default,
                "Tokens of an answer that names no limit", 1, kTokensChargedMax},
        Setting{"limits.connections_max", &C::connections_max, "Open sockets", 1, 1'000'000},
        Setting{"limits.header_bytes_max", &C::header_bytes_max, "Request line and headers", 256,
                kBytesMax},
        Setting{"limits.body_bytes_max", &C::body_bytes_max, "Body of a request", 1, kBytesMax},
        Setting{"limits.unread_bytes_max", &C::unread_bytes_max,
                "Bytes of a reply that wait for a slow client; more cut it off", 1024, kBytesMax},
        Setting{"limits.header_s", &C::header_s, "Seconds for the headers", 0.01, kSecondsMax},
        Setting{"limits.body_s", &C::body_s, "Seconds for the body", 0.01, kSecondsMax},
        Setting{"limits.idle_s", &C::idle_s, "Seconds between two requests of a connection", 0.01,
                kSecondsMax},
        Setting{"limits.write_s", &C::write_s, "Seconds without a byte read by the client", 0.01,
                kSecondsMax},
        Setting{"limits.ping_s", &C::ping_s, "Seconds of silence before an SSE comment", 0.01,
                kSecondsMax},
        Setting{"limits.drain_s", &C::drain_s, "Seconds for running streams after SIGTERM", 0,
                kSecondsMax},
        Setting{"limits.watchdog_s", &C::watchdog_s, "Seconds after which a step hangs", 0.1,
                kSecondsMax},
        Setting{"limits.ledger_slots", &C::ledger_slots,
                "Requests on their way and ledger rows not yet on disk, together", 1, 1'000'000},
    };
    return kSettings;
}

template <typename Number>
std::string set_number(std::string_view text, const Setting& setting, Number& value) {
    Number read{};
    const char* const end = text.data() + text.size();
    const auto [stopped, problem] = std::from_chars(text.data(), end, read);
    const auto asked = static_cast<double>(read);
    // Written so that NaN is outside.
    const bool inside = asked >= setting.low && asked <= setting.high;
    if (text.empty() || problem != std::errc() || stopped != end || !inside)
        return fmt::format("expected {} from {} to {}, found {}",
                           std::is_integral_v<Number> ? "a whole number" : "a number",
                           static_cast<Number>(setting.low), static_cast<Number>(setting.high),
                           text.empty() ? "nothing" : text);
    value = read;
    return {};
}

std::string set_value(std::string_view text, const Setting&, bool& value) {
    if (text != "true" && text != "false" && text != "1" && text != "0")
        return fmt::format("expected true or false, found {}", text.empty() ? "nothing" : text);
    value = text == "true" || text == "1";
    return {};
}

std::string set_value(std::string_view text, const Setting& setting, std::string& value) {
    if (!setting.choices.empty() &&
        std::ranges::find(setting.choices, text) == setting.choices.end())
        return fmt::format("expected {}, found {}", fmt::join(setting.choices, " or "),
                           text.empty() ? "nothing" : text);
    if (text.find('\0') != std::string_view::npos) return "has a zero byte";
    value = text;
    return {};
}

template <typename Number>
std::string set_value(std::string_view text, const Setting& setting, Number& value) {
    return set_number(text, setting, value);
}

}  // namespace

ModelPrices ServerConfig::prices_of(std::string_view id) const {
    for (const std::string_view name : {id, std::string_view("default")})
        if (const auto found = prices.find(name); found != prices.end()) return found->second;
    return {};
}

std::string Setting::flag() const {
    std::string name = "--" + std::string(key.substr(key.find('.') + 1));
    std::ranges::replace(name, '_', '-');
    return name;
}

std::string Setting::environment() const {
    std::string name = "TESSERA_" + std::string(key.substr(key.find('.') + 1));
    std::ranges::transform(name, name.begin(), [](char c) {
        return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c;
    });
    return name;
}

std::span<const Setting> settings() {
    return table();
}

const Setting* setting_of(std::string_view key) {
    const auto found = std::ranges::find(table(), key, &Setting::key);
    return found != table().end() ? &*found : nullptr;
}

std::string apply(const Setting& setting, std::string_view text, ServerConfig& config) {
    return std::visit([&](auto field) { return set_value(text, setting, config.*field); },
                      setting.field);
}

ServerConfig resolve(const Given& flags, const Environment& environment, const ConfigFile& file) {
    for (const auto& [key, text] : flags) CHECK(setting_of(key) != nullptr);
    ServerConfig config;
    config.prices = file.prices();
    for (const Setting& setting : settings()) {
        const char* const variable = environment(setting.environment().c_str());
        const auto flag = flags.find(setting.key);
        const auto line = file.given().find(setting.key);
        std::string problem, where;
        if (flag != flags.end()) {
            where = setting.flag();
            problem = apply(setting, flag->second, config);
        } else if (variable != nullptr && *variable != '\0') {
            where = setting.environment();
            problem = apply(setting, variable, config);
        } else if (line != file.given().end()) {
            where = setting.key;
            problem = apply(setting, line->second, config);
        }
        if (!problem.empty()) fail("{}: {}", where, problem);
    }
    return config;
}

}  // namespace tessera
