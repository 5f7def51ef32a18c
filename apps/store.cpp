#include "store.h"

#include "base/error.h"

namespace tessera {

void add_store_option(CLI::App& command, std::string& file) {
    command.add_option("--store", file, "Database of keys and ledger, as given to serve")
        ->type_name("FILE")
        ->envname("TESSERA_STORE")
        ->required();
}

std::optional<UnixMs> given_time(const std::string& text, DayEdge edge, const char* flag) {
    if (text.empty()) return std::nullopt;
    const std::optional<UnixMs> time = parse_time(text, edge);
    if (!time)
        fail("{}: expected a day (2026-06-09) or a time (2026-06-09T12:30Z), UTC, found {}", flag,
             text);
    return time;
}

}  // namespace tessera
