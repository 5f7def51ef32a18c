// tessera man: the manual page, in roff, from the tree that --help is printed from.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "command_tree.h"
#include "commands.h"

namespace tessera {
namespace {

// As text: no letter of it is an instruction, no hyphen becomes a dash.
std::string roff(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        const bool begins = i == 0 || text[i - 1] == '\n';
        if (begins && (text[i] == '.' || text[i] == '\'')) out += "\\&";
        if (text[i] == '\\')
            out += "\\e";
        else if (text[i] == '-')
            out += "\\-";
        else
            out += text[i];
    }
    return out;
}

std::string operand_text(const CommandOption& option) {
    if (option.operand == Operand::kNone) return "";
    return fmt::format(" \\fI{}\\fR{}", roff(option.operand_name), option.several ? " ..." : "");
}

void print_option(const CommandOption& option) {
    std::vector<std::string> names;
    for (const std::string& name : option.names) names.push_back("\\fB" + roff(name) + "\\fR");
    fmt::print(".TP\n{}{}\n{}", fmt::join(names, ", "), operand_text(option), roff(option.help));
    if (!option.help.ends_with('.')) fmt::print(".");
    if (option.required) fmt::print(" Required.");
    if (!option.standard.empty()) fmt::print(" Default: {}.", roff(option.standard));
    if (!option.environment.empty()) fmt::print(" Environment: {}.", option.environment);
    fmt::print("\n");
}

std::string synopsis(const Command& command) {
    std::string line = fmt::format("\\fB{}\\fR", roff(command.path));
    if (!command.options.empty()) line += " [\\fIOPTIONS\\fR]";
    for (const CommandOption& one : command.positionals) {
        const std::string name =
            fmt::format("\\fI{}\\fR{}", roff(one.names.front()), one.several ? "..." : "");
        line += one.required ? " " + name : " [" + name + "]";
    }
    if (!command.commands.empty()) line += " \\fICOMMAND\\fR";
    return line;
}

void print_command(const Command& command) {
    fmt::print(".SS {}\n{}.\n.PP\n{}\n", roff(command.path), roff(command.help), synopsis(command));
    for (const CommandOption& one : command.positionals) print_option(one);
    for (const CommandOption& one : command.options)
        if (one.names.back() != "--help") print_option(one);
    if (!command.footer.empty()) fmt::print(".PP\n.nf\n{}.fi\n", roff(command.footer));
}

void print_manual(const CLI::App& program) {
    const std::vector<Command> all = command_tree(program);
    fmt::print(".TH TESSERA 1 \"\" \"Tessera {}\" \"User Commands\"\n", TESSERA_VERSION);
    fmt::print(".SH NAME\ntessera \\- decode mixture\\-of\\-experts language models\n");
    fmt::print(".SH SYNOPSIS\n{}\n", synopsis(all.front()));
    fmt::print(".SH DESCRIPTION\n{}\n", roff(all.front().help));
    fmt::print(".PP\nEach command has \\fB\\-\\-help\\fR.\n.SH OPTIONS\n");
    for (const CommandOption& one : all.front().options) print_option(one);
    fmt::print(".SH COMMANDS\n");
    for (size_t i = 1; i < all.size(); ++i) print_command(all[i]);
    fmt::print(
        ".SH EXIT STATUS\n0: done. 1: what was looked at is not as it should be. 2: a mistake in "
        "what was given, with its fix on stderr. 70: a step of the served model hung. 130: "
        "interrupted.\n");
}

}  // namespace

void add_man(CLI::App& program) {
    CLI::App& command = *program.add_subcommand("man", "Print the manual page, in roff");
    command.group("");  // for packagers
    command.callback([&program] { print_manual(program); });
}

}  // namespace tessera
