// One line a fact, on stderr; stdout belongs to generated text.
#pragma once

#include <spdlog/spdlog.h>

namespace tessera {

// Sends the log to stderr as "tessera: …" from `level` up. Called once by the program, not by
// tests.
void log_to_stderr(spdlog::level::level_enum level);

}  // namespace tessera
