// How a server is set up: every setting once, with its default, unit, range and words. A flag wins
// over the environment, the environment over the configuration file, the file over the default.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "server/prices.h"

namespace tessera {

// Counts are counts, bytes are bytes, seconds are _s. Field by field as in settings().
struct ServerConfig {
    // ---- where
    std::string host = "127.0.0.1";  // an address of this machine; 0.0.0.0 or ::, all of them
    uint32_t port = 8080;            // 0: any free one
    std::string model;               // folder of the checkpoint; empty: the bundled one
    std::string model_id;            // what clients call it; empty: the folder's name
    std::string store;               // keys and ledger; empty: everybody may come in, no ledger
    bool keys_required = false;      // refuse everybody while the store has no key
    std::string log = "plain";       // or "json": a line a fact, on stderr
    bool metrics_public = false;     // /metrics without a key

    // ---- engine
    uint32_t context = 0;  // tokens of prompt and answer; 0: the model's, up to 32768
    uint32_t threads = 0;  // workers; 0: all cores allowed
    uint32_t ranks = 1;
    std::string isa;  // empty: the fastest here
    std::string activations = "bf16";

    // ---- limits
    uint32_t sequences_max = 16;            // that advance in one step
    uint32_t queue_max = 256;               // requests that wait for a place; more: 429
    uint32_t prefill_chunk = 64;            // prompt tokens between two steps of the others
    uint32_t cache_tokens = 131'072;        // of finished conversations kept for reuse
    uint32_t completion_default = 4096;     // max_completion_tokens of those who give none
    uint32_t connections_max = 4096;        // open sockets; more are closed at once
    uint64_t header_bytes_max = 16'384;     // request line and headers: 431
    uint64_t body_bytes_max = 16'777'216;   // 413
    uint64_t unread_bytes_max = 1'048'576;  // of a reply that its client does not read: cut off
    double header_s = 10;                   // from the first byte to the end of the headers: 408
    double body_s = 60;                     // from there to the end of the body: 408
    double idle_s = 75;                     // between two requests of a connection
    double write_s = 30;                    // a client that takes no byte for so long: cut off
    double ping_s = 15;                     // an SSE comment when nothing else was sent
    double drain_s = 30;                    // after SIGTERM, for running streams
    double watchdog_s = 60;                 // a step that takes longer ends the process
    uint32_t ledger_slots = 16'384;         // see server/ledger.h

    // ---- prices
    std::map<std::string, ModelPrices, std::less<>> prices;  // by model_id, and "default"
    ModelPrices prices_of(std::string_view id) const;        // its own, else those
                                                             // of "default", else the list's
};

// One setting: where its value goes and what it may be.
struct Setting {
    using Field =
        std::variant<std::string ServerConfig::*, bool ServerConfig::*, uint32_t ServerConfig::*,
                     uint64_t ServerConfig::*, double ServerConfig::*>;
    std::string_view key;  // in the file: "port", "limits.queue_max"
    Field field;
    std::string_view help;                       // one line, for --help
    double low = 0, high = 0;                    // of numbers, both included
    std::vector<std::string_view> choices = {};  // of texts; none: any

    std::string flag() const;         // "--queue-max"
    std::string environment() const;  // "TESSERA_QUEUE_MAX"
};
std::span<const Setting> settings();
const Setting* setting_of(std::string_view key);  // none: there is none

// Sets it from a text. What is wrong with the text, in words; empty if nothing.
std::string apply(const Setting& setting, std::string_view text, ServerConfig& config);

// Texts as given, by Setting::key. A flag without a value ("--keys-required") is given as "true".
using Given = std::map<std::string, std::string, std::less<>>;
using Environment = std::function<const char*(const char* name)>;  // std::getenv

// What a configuration file says. Throws Error naming `source` and the line: not TOML, an unknown
// key (with the nearest known one), a value of another type or out of range.
class ConfigFile {
  public:
    ConfigFile() = default;  // an empty one
    static ConfigFile parse(std::string_view text, std::string_view source);
    static ConfigFile read(const std::string& path);  // at most kBytesMax
    static constexpr uint64_t kBytesMax = 1'048'576;

    const Given& given() const { return given_; }
    const std::map<std::string, ModelPrices, std::less<>>& prices() const { return prices_; }

  private:
    Given given_;
    std::map<std::string, ModelPrices, std::less<>> prices_;
};

// The one place where precedence is decided. Throws Error naming the flag, the variable or the key
// of a value that is none or out of range. An empty variable counts as not set.
ServerConfig resolve(const Given& flags, const Environment& environment, const ConfigFile& file);

}  // namespace tessera
