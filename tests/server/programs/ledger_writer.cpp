// ledger_writer STORE FIRST: records requests FIRST, FIRST + 1, … until it is killed, and says on
// stdout which are on disk: "N" means all below N. What ledger_kill_test.py kills.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "server/ledger.h"

int main(int argc, char** argv) {
    using namespace tessera;
    if (argc != 3) return 2;
    constexpr int64_t kPatienceMs = 60'000;
    constexpr uint64_t kBetweenFlushes = 7;  // so that a transaction has several rows
    try {
        Ledger ledger(argv[1]);
        for (uint64_t i = std::strtoull(argv[2], nullptr, 10);; ++i) {
            if (i % kBetweenFlushes == 0) {
                if (!ledger.flush(kPatienceMs)) return 1;
                std::printf("%llu\n", static_cast<unsigned long long>(i));
                std::fflush(stdout);
            }
            LedgerRow row;
            row.request_id = "request-" + std::to_string(i);
            row.key = static_cast<KeyId>(i % 3);
            row.mode = i % 2 == 0 ? Mode::kBase : Mode::kUltraspeed;
            row.model = "mini";
            row.tokens = {static_cast<uint32_t>(100 + i % 50), static_cast<uint32_t>(i % 50),
                          static_cast<uint32_t>(i % 11)};
            row.prices = token_prices({}, row.mode);
            row.received = row.finished = unix_ms_now();
            std::optional<Ledger::Slot> slot = ledger.reserve();
            if (!slot) return 1;
            slot->record(std::move(row));
        }
    } catch (const Error& error) {
        std::fprintf(stderr, "ledger_writer: %s\n", error.what());
        return 2;
    }
}
