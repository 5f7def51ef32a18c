#include "server/ledger.h"

#include <filesystem>
#include <thread>

#include <gmock/gmock.h>

#include "support/temporary_store.h"

namespace tessera {
namespace {

constexpr UnixMs kDayMs = 86'400'000;
constexpr UnixMs kNoon = 20'614 * kDayMs + kDayMs / 2;  // 2026-06-10 12:00 UTC
constexpr int64_t kPatienceMs = 60'000;

LedgerRow row_of(std::string id, KeyId key = 1, Mode mode = Mode::kBase, UnixMs finished = kNoon) {
    LedgerRow row;
    row.request_id = std::move(id);
    row.key = key;
    row.mode = mode;
    row.model = "mini";
    row.tokens = {100, 40, 7};
    row.prices = token_prices({}, mode);
    row.received = finished - 1000;
    row.first_token = finished - 900;
    row.finished = finished;
    return row;
}

void record(Ledger& ledger, LedgerRow row) {
    std::optional<Ledger::Slot> slot = ledger.reserve();
    ASSERT_TRUE(slot);
    slot->record(std::move(row));
}

TEST(Ledger, KeepsEveryFieldOfARow) {
    const TemporaryStore store;
    {
        Ledger ledger(store.file());
        LedgerRow row = row_of("r1", 3, Mode::kUltraspeed);
        row.ended = Ended::kCancelled;
        record(ledger, row);
        row.request_id = "r2";
        row.first_token.reset();
        record(ledger, row);
        EXPECT_TRUE(ledger.flush(kPatienceMs));
        EXPECT_EQ(ledger.state().rows_written, 2u);
    }
    Database database(store.file());
    Statement rows = database.prepare(
        "SELECT request_id, key, mode, model, prompt_tokens, cached_tokens, completion_tokens, "
        "price_cached, price_input, price_output, cost, received, first_token, finished, ended "
        "FROM ledger ORDER BY request_id");
    ASSERT_TRUE(rows.step());
    EXPECT_EQ(rows.text(0), "r1");
    EXPECT_EQ(rows.integer(1), 3);
    EXPECT_EQ(rows.text(2), "ultraspeed");
    EXPECT_EQ(rows.text(3), "mini");
    EXPECT_EQ(rows.integer(4), 100);
    EXPECT_EQ(rows.integer(5), 40);
    EXPECT_EQ(rows.integer(6), 7);
    EXPECT_EQ(rows.integer(7), 10'800);
    EXPECT_EQ(rows.integer(8), 1'305'000);
    EXPECT_EQ(rows.integer(9), 2'610'000);
    EXPECT_EQ(rows.integer(10), 40 * 10'800 + 60 * 1'305'000 + 7 * 2'610'000);
    EXPECT_EQ(rows.integer(11), kNoon - 1000);
    EXPECT_EQ(rows.integer_or_null(12), kNoon - 900);
    EXPECT_EQ(rows.integer(13), kNoon);
    EXPECT_EQ(rows.text(14), "cancelled");
    ASSERT_TRUE(rows.step());
    EXPECT_EQ(rows.integer_or_null(12), std::nullopt);
    EXPECT_FALSE(rows.step());
}

TEST(Ledger, ARetryChargesOnce) {
    const TemporaryStore store;
    for (int start = 0; start < 2; ++start) {
        Ledger ledger(store.file());
        for (int i = 0; i < 3; ++i) record(ledger, row_of("same"));
        EXPECT_TRUE(ledger.flush(kPatienceMs));
    }
    Database database(store.file());
    const std::vector<UsageRow> sums = usage(database, {}, {});
    ASSERT_EQ(sums.size(), 1u);
    EXPECT_EQ(sums[0].requests, 1u);
    EXPECT_EQ(sums[0].cost, row_of("same").cost());
}

TEST(Ledger, SlotsAreBoundedAndComeBack) {
    const TemporaryStore store;
    Ledger ledger(store.file(), 2);
    std::optional<Ledger::Slot> first = ledger.reserve(), second = ledger.reserve();
    ASSERT_TRUE(first && second);
    EXPECT_FALSE(ledger.reserve());
    second.reset();  // a request that never began
    second = ledger.reserve();
    ASSERT_TRUE(second);
    first->record(row_of("r1"));
    EXPECT_TRUE(ledger.flush(kPatienceMs));
    EXPECT_TRUE(ledger.reserve()) << "a written row gives its place back";
    second.reset();
    EXPECT_EQ(ledger.state().slots_taken, 0u);
}

// Another process holds the writer's lock: rows wait, nobody else does, nothing is lost.
TEST(Ledger, ADiskThatDoesNotTakeRowsStopsNobody) {
    const TemporaryStore store;
    Database other(store.file());
    Ledger ledger(store.file(), 8);
    {
        const Transaction blocking(other);
        for (int i = 0; i < 8; ++i) record(ledger, row_of("r" + std::to_string(i)));
        EXPECT_FALSE(ledger.flush(50));
        EXPECT_FALSE(ledger.reserve()) << "full: the server refuses new requests";
        EXPECT_EQ(ledger.state().rows_waiting, 8u);
        EXPECT_EQ(ledger.state().rows_written, 0u);
    }
    EXPECT_TRUE(ledger.flush(kPatienceMs));
    EXPECT_TRUE(ledger.reserve());
    EXPECT_EQ(ledger.state().rows_waiting, 0u);
    EXPECT_EQ(usage(other, {}, {})[0].requests, 8u);
}

// The table is gone: every transaction fails until it is there again.
TEST(Ledger, AFailedTransactionIsTriedAgain) {
    const TemporaryStore store;
    Database other(store.file());
    Ledger ledger(store.file());
    other.execute("ALTER TABLE ledger RENAME TO elsewhere");
    record(ledger, row_of("r1"));
    for (int i = 0; i < 600 && ledger.state().failures == 0; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
    EXPECT_GE(ledger.state().failures, 1u);
    record(ledger, row_of("r2"));
    other.execute("ALTER TABLE elsewhere RENAME TO ledger");
    EXPECT_TRUE(ledger.flush(kPatienceMs));
    EXPECT_EQ(usage(other, {}, {})[0].requests, 2u);
}

TEST(Ledger, TakesRowsFromManyThreads) {
    const TemporaryStore store;
    constexpr int kThreads = 4, kRows = 500;
    {
        Ledger ledger(store.file(), 64);
        std::vector<std::thread> threads;
        for (int t = 0; t < kThreads; ++t)
            threads.emplace_back([&, t] {
                for (int i = 0; i < kRows;) {
                    std::optional<Ledger::Slot> slot = ledger.reserve();
                    if (!slot) {
                        std::this_thread::yield();
                        continue;
                    }
                    slot->record(row_of(std::to_string(t) + "-" + std::to_string(i++)));
                }
            });
        for (std::thread& thread : threads) thread.join();
    }  // closing writes the rest
    Database database(store.file());
    EXPECT_EQ(usage(database, {}, {})[0].requests, uint64_t{kThreads * kRows});
}

TEST(Usage, SumsByKeyModeAndDay) {
    const TemporaryStore store;
    Database database(store.file());
    KeyRules rules;
    rules.name = "launch";
    create_key(database, rules, 0);
    {
        Ledger ledger(store.file());
        int id = 0;
        const auto add = [&](KeyId key, Mode mode, UnixMs finished, int times) {
            for (int i = 0; i < times; ++i)
                record(ledger, row_of(std::to_string(id++), key, mode, finished));
        };
        add(1, Mode::kBase, kNoon, 2);
        add(1, Mode::kUltraspeed, kNoon, 3);
        add(kAnonymous, Mode::kBase, kNoon, 1);
        add(1, Mode::kBase, kNoon + kDayMs / 2 - 1, 1);  // the day's last millisecond
        add(1, Mode::kBase, kNoon + kDayMs / 2, 1);      // the next day's first
    }
    const std::vector<UsageRow> sums = usage(database, {}, {});
    ASSERT_EQ(sums.size(), 4u);
    const struct {
        const char *day, *name, *mode;
        uint64_t requests;
    } expected[] = {
        {"2026-06-10", "", "base", 1},
        {"2026-06-10", "launch", "base", 3},
        {"2026-06-10", "launch", "ultraspeed", 3},
        {"2026-06-11", "launch", "base", 1},
    };
    for (size_t i = 0; i < sums.size(); ++i) {
        EXPECT_EQ(sums[i].day, expected[i].day);
        EXPECT_EQ(sums[i].key_name, expected[i].name);
        EXPECT_EQ(sums[i].mode, expected[i].mode);
        EXPECT_EQ(sums[i].requests, expected[i].requests);
        EXPECT_EQ(sums[i].prompt, 100 * expected[i].requests);
        EXPECT_EQ(sums[i].cached, 40 * expected[i].requests);
        EXPECT_EQ(sums[i].completion, 7 * expected[i].requests);
        const Mode mode = *mode_of(expected[i].mode);
        EXPECT_EQ(sums[i].cost,
                  row_of("", 0, mode).cost() * static_cast<PicoUsd>(expected[i].requests));
    }
    // since is included, until is not.
    EXPECT_EQ(usage(database, kNoon + kDayMs / 2, {}).size(), 1u);
    EXPECT_EQ(usage(database, {}, kNoon + kDayMs / 2).size(), 3u);
    EXPECT_TRUE(usage(database, kNoon + kDayMs, {}).empty());
}

}  // namespace
}  // namespace tessera
