#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>

namespace tessera {

void log_to_stderr(spdlog::level::level_enum level) {
    auto logger = spdlog::stderr_logger_mt("tessera");
    logger->set_pattern("%n: %v");
    logger->set_level(level);
    spdlog::set_default_logger(std::move(logger));
}

}  // namespace tessera
