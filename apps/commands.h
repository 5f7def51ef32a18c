// The commands of the one binary. Each adds itself to the program, with its help, and throws Error
// for the person at the keyboard; main prints it.
#pragma once

#include <filesystem>
#include <string>
#include <utility>

#include <CLI/CLI.hpp>

#include "tessera/speculation.h"

namespace tessera {

void add_run(CLI::App& program);
void add_serve(CLI::App& program);
void add_inspect(CLI::App& program);
void add_bench(CLI::App& program);
void add_bench_activations(CLI::App& bench);
void add_bench_speculation(CLI::App& bench);
void add_bench_quantize(CLI::App& bench);
void add_bench_masks(CLI::App& bench);
void add_explain(CLI::App& program);
void add_compare(CLI::App& program);
void add_keys(CLI::App& program);
void add_usage(CLI::App& program);
void add_quantize(CLI::App& program);
void add_eval(CLI::App& program);
void add_doctor(CLI::App& program);
void add_completion(CLI::App& program);
void add_man(CLI::App& program);

// The model that comes with the program: installed or unpacked, under share/tessera beside bin;
// built, beside the sources. Throws Error if it is in neither place.
std::filesystem::path bundled_model();

// "auto", "off" or a number of tokens; with what is wrong with it, empty if nothing.
std::pair<Speculation, std::string> parse_speculation(const std::string& given);

}  // namespace tessera
