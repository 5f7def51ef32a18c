// tessera completion: scripts by which bash, zsh and fish complete its commands, options, choices,
// files and folders; from the tree that --help is printed from.
#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "command_tree.h"
#include "commands.h"

namespace tessera {
namespace {

std::string replaced(std::string_view text, std::string_view what, std::string_view by) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (what.find(text[i]) == what.npos)
            out += text[i];
        else
            out += std::string(by) + text[i];
    }
    return out;
}

bool is_long(const std::string& name) {
    return name.starts_with("--");
}

// ------------------------------------------------------------------ bash

constexpr const char* kBashBegin =
    R"(# bash completion of tessera, made by `tessera completion bash`

# Sets commands, options and positional: what may follow the command $1.
__tessera_command() {
    case $1 in
)";

constexpr const char* kBashOperands = R"(    esac
}

# Sets operand: what option $2 of command $1 takes; empty for a flag.
__tessera_operand() {
    operand=
    case "$1 $2" in
)";

constexpr const char* kBashEnd = R"(    esac
}

# Offers what fits $current of: text, file, folder, or choice and the words.
__tessera_offer() {
    case $1 in
    file) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    folder) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
    choice*) mapfile -t COMPREPLY < <(compgen -W "${1#choice}" -- "$current") ;;
    esac
}

_tessera() {
    local current=${COMP_WORDS[COMP_CWORD]} path=tessera
    local commands options positional operand word i waits=
    COMPREPLY=()
    [[ $current != "=" ]] || current=  # readline cuts "--log=json" into three words
    __tessera_command "$path"
    for ((i = 1; i < COMP_CWORD; ++i)); do
        word=${COMP_WORDS[i]}
        if [[ $waits ]]; then
            [[ $word == "=" ]] || waits=
        elif [[ $word == -* ]]; then
            __tessera_operand "$path" "$word"
            [[ -z $operand ]] || waits=yes
        elif [[ " $commands " == *" $word "* ]]; then
            path+=" $word"
            __tessera_command "$path"
        fi
    done
    if [[ $waits ]]; then
        __tessera_offer "$operand"
    elif [[ $current == -* ]]; then
        __tessera_offer "choice $options"
    elif [[ $commands ]]; then
        __tessera_offer "choice $commands"
    elif [[ $positional == text ]]; then
        [[ $current ]] || __tessera_offer "choice $options"
    else
        __tessera_offer "$positional"
    fi
}
complete -F _tessera tessera
)";

std::string bash_operand(const CommandOption& option) {
    switch (option.operand) {
        case Operand::kNone:
            return "";
        case Operand::kText:
            return "text";
        case Operand::kFile:
            return "file";
        case Operand::kFolder:
            return "folder";
        case Operand::kChoice:
            return fmt::format("choice {}", fmt::join(option.choices, " "));
    }
    return "";
}

void print_bash(const std::vector<Command>& all) {
    fmt::print("{}", kBashBegin);
    for (const Command& command : all) {
        std::vector<std::string> names;
        for (const CommandOption& option : command.options)
            names.insert(names.end(), option.names.begin(), option.names.end());
        const std::string positional =
            command.positionals.empty() ? "text" : bash_operand(command.positionals.front());
        fmt::print(
            "    \"{}\")\n        commands=\"{}\"\n        options=\"{}\"\n"
            "        positional=\"{}\" ;;\n",
            command.path, fmt::join(command.commands, " "), fmt::join(names, " "), positional);
    }
    fmt::print("{}", kBashOperands);
    for (const Command& command : all) {
        for (const CommandOption& option : command.options) {
            if (option.operand == Operand::kNone) continue;
            std::vector<std::string> patterns;
            for (const std::string& name : option.names)
                patterns.push_back(fmt::format("\"{} {}\"", command.path, name));
            fmt::print("    {}) operand=\"{}\" ;;\n", fmt::join(patterns, " | "),
                       bash_operand(option));
        }
    }
    fmt::print("{}", kBashEnd);
}

// ------------------------------------------------------------------ zsh

// Inside single quotes of the shell.
std::string zsh_quoted(std::string_view text) {
    std::string out;
    for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return out;
}

std::string zsh_words(std::string_view text) {
    return zsh_quoted(replaced(text, "\\[]:", "\\"));
}

std::string zsh_function(std::string_view path) {
    std::string name = "_";
    for (const char c : path) name += c == ' ' ? std::string("__") : std::string(1, c);
    return name;
}

std::string zsh_operand(const CommandOption& option) {
    switch (option.operand) {
        case Operand::kNone:
            return "";
        case Operand::kText:
            return fmt::format(":{}: ", zsh_words(option.operand_name));
        case Operand::kFile:
            return ":file:_files";
        case Operand::kFolder:
            return ":folder:_files -/";
        case Operand::kChoice:
            return fmt::format(":value:({})",
                               zsh_quoted(fmt::format("{}", fmt::join(option.choices, " "))));
    }
    return "";
}

// A line of _arguments for each name: '(-m --model)--model=[Folder of ...]:folder:_files -/'
void print_zsh_option(const CommandOption& option) {
    for (const std::string& name : option.names) {
        const std::string rest = option.operand == Operand::kNone ? "" : is_long(name) ? "=" : "+";
        const std::string once =
            option.several ? "*" : fmt::format("({})", fmt::join(option.names, " "));
        fmt::print(" \\\n        '{}{}{}[{}]{}'", once, name, rest, zsh_words(option.help),
                   zsh_operand(option));
    }
}

void print_zsh_command(const Command& command, const std::vector<Command>& all) {
    fmt::print(
        "\n{}() {{\n    local curcontext=$curcontext state line ret=1\n"
        "    typeset -A opt_args\n    _arguments -C -s",
        zsh_function(command.path));
    for (const CommandOption& option : command.options) print_zsh_option(option);
    if (command.commands.empty()) {
        for (const CommandOption& option : command.positionals) {
            // A text: nothing to offer. The message that options have would hide these.
            const std::string operand =
                option.operand == Operand::kText ? ":text:()" : zsh_operand(option);
            fmt::print(" \\\n        '{}{}'", option.several ? "*" : ":", operand);
        }
        fmt::print(" && ret=0\n    return ret\n}}\n");
        return;
    }
    fmt::print(
        " \\\n        '1: :->command' '*:: :->below' && ret=0\n    case $state in\n"
        "    command)\n        local -a commands=(");
    for (const std::string& name : command.commands) {
        const auto found = std::ranges::find(all, command.path + " " + name, &Command::path);
        fmt::print("\n            '{}:{}'", name, zsh_quoted(found->help));
    }
    fmt::print(
        "\n        )\n        _describe -t commands command commands && ret=0 ;;\n"
        "    below)\n        case $words[1] in\n");
    for (const std::string& name : command.commands)
        fmt::print("        {}) {} && ret=0 ;;\n", name, zsh_function(command.path + " " + name));
    fmt::print("        esac ;;\n    esac\n    return ret\n}}\n");
}

void print_zsh(const std::vector<Command>& all) {
    fmt::print("#compdef tessera\n# zsh completion of tessera, made by `tessera completion zsh`\n");
    for (const Command& command : all) print_zsh_command(command, all);
    // Found in $fpath the file is the function; sourced it only defines it.
    fmt::print(
        "\nif [[ $funcstack[1] == _tessera ]]; then\n    _tessera \"$@\"\nelse\n"
        "    compdef _tessera tessera\nfi\n");
}

// ------------------------------------------------------------------ fish

constexpr const char* kFishAt = R"(# Whether the words so far are those of the command $argv[1].
function __tessera_at
    set -l path tessera
    for word in (commandline -opc)[2..-1]
        if contains -- "$path $word" $__tessera_commands
            set path "$path $word"
        end
    end
    test "$path" = "$argv[1]"
end

complete -c tessera -f
)";

std::string fish_quoted(std::string_view text) {
    return "'" + replaced(text, "\\'", "\\") + "'";
}

std::string fish_operand(const CommandOption& option) {
    switch (option.operand) {
        case Operand::kNone:
            return "";
        case Operand::kText:
            return " -x";
        case Operand::kFile:
            return " -r -F";
        case Operand::kFolder:
            return " -x -a '(__fish_complete_directories)'";
        case Operand::kChoice:
            return fmt::format(" -x -a '{}'", fmt::join(option.choices, " "));
    }
    return "";
}

void print_fish_command(const Command& command, const std::vector<Command>& all) {
    const std::string when =
        fmt::format("complete -c tessera -n '__tessera_at \"{}\"'", command.path);
    for (const std::string& name : command.commands) {
        const auto found = std::ranges::find(all, command.path + " " + name, &Command::path);
        fmt::print("{} -a {} -d {}\n", when, name, fish_quoted(found->help));
    }
    if (!command.positionals.empty()) {
        const CommandOption& positional = command.positionals.front();
        const Operand first = positional.operand;
        if (first == Operand::kChoice)
            fmt::print("{} -a '{}'\n", when, fmt::join(positional.choices, " "));
        if (first == Operand::kFile) fmt::print("{} -F\n", when);
        if (first == Operand::kFolder) fmt::print("{} -a '(__fish_complete_directories)'\n", when);
    }
    for (const CommandOption& option : command.options) {
        std::string names;
        for (const std::string& name : option.names)
            names += is_long(name) ? " -l " + name.substr(2) : " -s " + name.substr(1);
        fmt::print("{}{}{} -d {}\n", when, names, fish_operand(option), fish_quoted(option.help));
    }
}

void print_fish(const std::vector<Command>& all) {
    fmt::print("# fish completion of tessera, made by `tessera completion fish`\n");
    fmt::print("set -g __tessera_commands");
    for (const Command& command : all) fmt::print(" {}", fish_quoted(command.path));
    fmt::print("\n\n{}", kFishAt);
    for (const Command& command : all) print_fish_command(command, all);
}

constexpr const char* kExamples = R"(Examples:
  source <(tessera completion bash)                                    this shell
  tessera completion bash > ~/.local/share/bash-completion/completions/tessera
  tessera completion zsh > ~/.zfunc/_tessera                           a folder of $fpath
  tessera completion fish > ~/.config/fish/completions/tessera.fish
)";

}  // namespace

void add_completion(CLI::App& program) {
    auto shell = std::make_shared<std::string>();
    CLI::App& command =
        *program.add_subcommand("completion", "Print a script by which a shell completes tessera");
    command.footer(kExamples);
    command.add_option("shell", *shell, "bash, zsh or fish")
        ->check(CLI::IsMember({"bash", "zsh", "fish"}))
        ->required();
    command.callback([shell, &program] {
        const std::vector<Command> all = command_tree(program);
        if (*shell == "bash") print_bash(all);
        if (*shell == "zsh") print_zsh(all);
        if (*shell == "fish") print_fish(all);
    });
}

}  // namespace tessera
