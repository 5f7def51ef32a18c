// The ledger: one row for each request that was finished or cut, written by a thread of its own.
//
// The engine never waits for the disk. A request takes a slot before it begins and hands its row to
// the slot when it ends, which costs a lock and a move; the writer commits what has gathered, many
// rows at once. When every slot is taken (the disk is slow, full or gone) reserve() gives none and
// the server answers 503: a request is refused rather than served for nothing. A row that is not
// written yet waits in memory and is tried again; its request id is unique in the table, so that no
// retry charges twice. What kill -9 can take is what was not committed: rows of the last few
// milliseconds.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "server/keys.h"
#include "server/prices.h"

namespace tessera {

enum class Ended : uint8_t {
    kStop,    // the model ended, or a stop string
    kLength,  // max_completion_tokens or the context
    kToolCalls,
    kCancelled,  // the client left
    kCut,        // by the server: drain, a client that does not read
    kError,      // something broke after the request began
};
std::string_view ended_name(Ended ended);  // "stop", "length", …, as in the table

struct LedgerRow {
    // The reply's x-request-id. The server makes it, never the client: who could choose it could
    // choose one that was charged already.
    std::string request_id;
    KeyId key = kAnonymous;
    Mode mode = Mode::kBase;
    std::string model;  // without the mode's suffix
    TokenCounts tokens;
    TokenPrices prices;  // as they were when it began
    UnixMs received = 0;
    std::optional<UnixMs> first_token;
    UnixMs finished = 0;
    Ended ended = Ended::kStop;

    PicoUsd cost() const { return cost_of(tokens, prices); }
};

class Ledger {
  public:
    // Opens the store and starts the writer. Throws Error. `slots_max`: requests at the same time
    // and rows on their way to the disk, together.
    explicit Ledger(const std::filesystem::path& store, uint32_t slots_max = 16'384);
    ~Ledger();  // writes what it can within kCloseMs; rows that stay behind are logged as errors
    static constexpr int64_t kCloseMs = 5000;

    // A place in the ledger for a request that begins. Must not outlive the ledger.
    class Slot {
      public:
        Slot(Slot&& other) noexcept;
        Slot& operator=(Slot&& other) noexcept;
        ~Slot();  // a request that never began leaves no row

        // Never blocks on the disk, never fails. At most once.
        void record(LedgerRow row);

      private:
        friend class Ledger;
        explicit Slot(Ledger* ledger) : ledger_(ledger) {}
        Ledger* ledger_;  // none once used
    };
    std::optional<Slot> reserve();  // none: full, answer 503

    // Waits until all that was recorded before is on disk; false after `timeout_ms`.
    bool flush(int64_t timeout_ms);

    struct State {
        uint32_t slots_taken = 0;  // requests that run, and rows that wait
        uint32_t rows_waiting = 0;
        uint64_t rows_written = 0;  // since the start
        uint64_t failures = 0;      // transactions that failed and were, or will be, tried again
    };
    State state() const;  // for metrics; any thread

  private:
    void write_loop();
    std::string write(const std::vector<LedgerRow>& rows);

    Database database_;  // the writer's
    const uint32_t slots_max_;
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<LedgerRow> waiting_;
    State state_;
    uint64_t recorded_ = 0;  // rows ever handed over; rows_written of them are on disk
    bool failing_ = false;   // the last transaction did
    bool closing_ = false;
    std::thread writer_;  // last: it uses all of the above
};

// What was used: sums of the ledger's rows by key, mode and day.
struct UsageRow {
    KeyId key = kAnonymous;
    std::string key_name;  // of a deleted or no key: empty
    std::string mode;
    std::string day;  // "2026-06-09", UTC, of the request's end
    uint64_t requests = 0;
    uint64_t prompt = 0, cached = 0, completion = 0;  // tokens; cached are of the prompt
    PicoUsd cost = 0;
};
// Rows that finished at `since` or later and before `until`; by day, then key, then mode.
std::vector<UsageRow> usage(Database& store, std::optional<UnixMs> since,
                            std::optional<UnixMs> until);

}  // namespace tessera
