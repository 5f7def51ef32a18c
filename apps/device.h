// The option that says where a command decodes.
#pragma once

#include <CLI/CLI.hpp>

#include "tessera/model.h"

namespace tessera {

// `device` outlives the parsing.
CLI::Option* add_device_option(CLI::App& command, Device& device);

}  // namespace tessera
