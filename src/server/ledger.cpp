#include "server/ledger.h"

#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/log.h"

namespace tessera {
namespace {

using std::chrono::milliseconds;

// Between two tries of a transaction that failed: a full disk does not get emptier any faster.
constexpr milliseconds kRetry{500};

// What the disk did not take, so that a person can still charge it.
void log_lost(const LedgerRow& row) {
    log_event(spdlog::level::err, "ledger_row_not_written",
              {{"request_id", row.request_id},
               {"key", row.key},
               {"mode", mode_name(row.mode)},
               {"model", row.model},
               {"prompt_tokens", int64_t{row.tokens.prompt}},
               {"cached_tokens", int64_t{row.tokens.cached}},
               {"completion_tokens", int64_t{row.tokens.completion}},
               {"cost_picousd", row.cost()},
               {"finished", row.finished},
               {"ended", ended_name(row.ended)}});
}

}  // namespace

std::string_view ended_name(Ended ended) {
    switch (ended) {
        case Ended::kStop:
            return "stop";
        case Ended::kLength:
            return "length";
        case Ended::kToolCalls:
            return "tool_calls";
        case Ended::kCancelled:
            return "cancelled";
        case Ended::kCut:
            return "cut";
        case Ended::kError:
            return "error";
    }
    return "error";
}

// ------------------------------------------------------------------ a slot

Ledger::Slot::Slot(Slot&& other) noexcept : ledger_(std::exchange(other.ledger_, nullptr)) {}

Ledger::Slot& Ledger::Slot::operator=(Slot&& other) noexcept {
    std::swap(ledger_, other.ledger_);
    return *this;
}

Ledger::Slot::~Slot() {
    if (ledger_ == nullptr) return;
    const std::lock_guard lock(ledger_->mutex_);
    --ledger_->state_.slots_taken;
}

void Ledger::Slot::record(LedgerRow row) {
    CHECK(ledger_ != nullptr);
    CHECK(!row.request_id.empty());
    Ledger& ledger = *std::exchange(ledger_, nullptr);
    {
        const std::lock_guard lock(ledger.mutex_);
        ledger.waiting_.push_back(std::move(row));  // reserved: never moves, never allocates
        ++ledger.recorded_;
        ++ledger.state_.rows_waiting;
    }
    ledger.changed_.notify_all();
}

// ------------------------------------------------------------------ the writer

Ledger::Ledger(const std::filesystem::path& store, uint32_t slots_max)
    : database_(store), slots_max_(slots_max) {
    CHECK(slots_max > 0);
    waiting_.reserve(slots_max);
    writer_ = std::thread([this] { write_loop(); });
}

Ledger::~Ledger() {
    flush(kCloseMs);
    {
        const std::lock_guard lock(mutex_);
        closing_ = true;
    }
    changed_.notify_all();
    writer_.join();
    for (const LedgerRow& row : waiting_) log_lost(row);
}

std::optional<Ledger::Slot> Ledger::reserve() {
    const std::lock_guard lock(mutex_);
    if (state_.slots_taken >= slots_max_) return std::nullopt;
    ++state_.slots_taken;
    return Slot(this);
}

bool Ledger::flush(int64_t timeout_ms) {
    std::unique_lock lock(mutex_);
    const uint64_t wanted = recorded_;
    return changed_.wait_for(lock, milliseconds(timeout_ms),
                             [&] { return state_.rows_written >= wanted; });
}

Ledger::State Ledger::state() const {
    const std::lock_guard lock(mutex_);
    return state_;
}

void Ledger::write_loop() {
    std::vector<LedgerRow> rows;  // taken out of waiting_, not yet on disk
    rows.reserve(slots_max_);
    std::unique_lock lock(mutex_);
    while (true) {
        changed_.wait(lock, [&] { return closing_ || !waiting_.empty(); });
        if (closing_) return;
        rows.swap(waiting_);
        lock.unlock();
        const std::string problem = write(rows);
        lock.lock();
        if (problem.empty()) {
            const auto written = static_cast<uint32_t>(rows.size());
            rows.clear();
            state_.rows_written += written;
            state_.rows_waiting -= written;
            state_.slots_taken -= written;
            if (std::exchange(failing_, false)) spdlog::warn("the ledger is written again");
            changed_.notify_all();
            continue;
        }
        // Back in front of what came meanwhile; there is room, as each row has its slot.
        ++state_.failures;
        if (!std::exchange(failing_, true))  // said once, not twice a second
            spdlog::error("the ledger could not be written, {} rows wait: {}", state_.rows_waiting,
                          problem);
        rows.insert(rows.end(), std::make_move_iterator(waiting_.begin()),
                    std::make_move_iterator(waiting_.end()));
        waiting_.clear();
        rows.swap(waiting_);
        changed_.wait_for(lock, kRetry, [&] { return closing_; });
    }
}

// What was in the way; empty: all rows are on disk.
std::string Ledger::write(const std::vector<LedgerRow>& rows) try {
    Transaction transaction(database_);
    // DO NOTHING: a row whose transaction was reported as failed, and was not, is there already.
    Statement insert = database_.prepare(
        "INSERT INTO ledger (request_id, key, mode, model, prompt_tokens, cached_tokens, "
        "completion_tokens, price_cached, price_input, price_output, cost, received, first_token, "
        "finished, ended) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (request_id) DO NOTHING");
    for (const LedgerRow& row : rows) {
        insert.bind(1, row.request_id).bind(2, row.key).bind(3, mode_name(row.mode));
        insert.bind(4, row.model).bind(5, int64_t{row.tokens.prompt});
        insert.bind(6, int64_t{row.tokens.cached}).bind(7, int64_t{row.tokens.completion});
        insert.bind(8, row.prices.cached).bind(9, row.prices.input).bind(10, row.prices.output);
        insert.bind(11, row.cost()).bind(12, row.received).bind(13, row.first_token);
        insert.bind(14, row.finished).bind(15, ended_name(row.ended)).run();
    }
    transaction.commit();
    return {};
} catch (const Error& error) {
    return error.what();
}

// ------------------------------------------------------------------ sums

std::vector<UsageRow> usage(Database& store, std::optional<UnixMs> since,
                            std::optional<UnixMs> until) {
    Statement sums = store.prepare(
        "SELECT ledger.key, coalesce(keys.name, ''), ledger.mode, "
        "strftime('%Y-%m-%d', ledger.finished / 1000, 'unixepoch') AS day, count(*), "
        "sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(cost) "
        "FROM ledger LEFT JOIN keys ON keys.id = ledger.key "
        "WHERE ledger.finished >= ?1 AND ledger.finished < ?2 "
        "GROUP BY day, ledger.key, ledger.mode ORDER BY day, ledger.key, ledger.mode");
    sums.bind(1, since.value_or(INT64_MIN)).bind(2, until.value_or(INT64_MAX));
    std::vector<UsageRow> rows;
    while (sums.step()) {
        UsageRow row;
        row.key = sums.integer(0);
        row.key_name = sums.text(1);
        row.mode = sums.text(2);
        row.day = sums.text(3);
        row.requests = static_cast<uint64_t>(sums.integer(4));
        row.prompt = static_cast<uint64_t>(sums.integer(5));
        row.cached = static_cast<uint64_t>(sums.integer(6));
        row.completion = static_cast<uint64_t>(sums.integer(7));
        row.cost = sums.integer(8);
        rows.push_back(std::move(row));
    }
    return rows;
}

}  // namespace tessera
