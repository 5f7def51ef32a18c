// The program's commands and options as data, read from CLI11's own tree: what --help shows is what
// the man page and the shells' completions say, because there is no second list.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace tessera {

// What may stand behind an option, or in the place of a positional.
enum class Operand : uint8_t { kNone, kText, kFile, kFolder, kChoice };

struct CommandOption {
    std::vector<std::string> names;  // "-m", "--model"; of a positional, its name
    Operand operand = Operand::kNone;
    std::string operand_name;          // "FOLDER", "{bf16,int8}"; empty for a flag
    std::vector<std::string> choices;  // of kChoice
    std::string help, standard;        // the default, empty if there is none to show
    std::string environment;           // the variable that is its twin; may be empty
    bool required = false, several = false;
};

struct Command {
    std::string path;  // "tessera keys create"
    std::string help, footer;
    std::vector<CommandOption> positionals, options;
    std::vector<std::string> commands;  // names of those below it
};

// The program itself first, each command before those below it. Hidden ones are left out.
std::vector<Command> command_tree(const CLI::App& program);

}  // namespace tessera
