// What the commands over a store share: how its file is named, and how times are given.
#pragma once

#include <optional>
#include <string>

#include <CLI/CLI.hpp>

#include "server/times.h"

namespace tessera {

// --store FILE, or TESSERA_STORE; needed.
void add_store_option(CLI::App& command, std::string& file);

// The time in `text`, none if it is empty. Throws Error naming `flag` if it is no time.
std::optional<UnixMs> given_time(const std::string& text, DayEdge edge, const char* flag);

}  // namespace tessera
