#include "command_tree.h"

#include <algorithm>

namespace tessera {
namespace {

std::vector<std::string> split(const std::string& text, char at) {
    std::vector<std::string> parts;
    for (size_t begin = 0; begin <= text.size();) {
        const size_t end = std::min(text.find(at, begin), text.size());
        parts.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return parts;
}

// CLI11 writes "TEXT:{bf16,int8}" and "UINT:INT in [1 - 64]": the type, then what checks it.
void read_operand(const CLI::Option& from, CommandOption& to) {
    if (from.get_items_expected_max() == 0) return;
    const std::vector<std::string> parts = split(from.get_type_name(), ':');
    to.operand = Operand::kText;
    to.operand_name = parts.front();
    for (const std::string& part : parts) {
        if (part.starts_with('{') && part.ends_with('}')) {
            to.operand = Operand::kChoice;
            to.operand_name = part;
            to.choices = split(part.substr(1, part.size() - 2), ',');
        }
    }
    if (to.operand == Operand::kChoice) return;
    for (const std::string& word : split(to.operand_name, '|')) {
        if (word == "FILE") to.operand = Operand::kFile;
        if (word == "FOLDER") to.operand = Operand::kFolder;
    }
}

CommandOption read_option(const CLI::Option& from) {
    CommandOption to;
    if (from.nonpositional()) {
        for (const std::string& name : from.get_snames()) to.names.push_back("-" + name);
        for (const std::string& name : from.get_lnames()) to.names.push_back("--" + name);
    } else {
        to.names.push_back(from.get_name(true));
    }
    read_operand(from, to);
    to.help = from.get_description();
    to.standard = from.get_default_str();
    to.environment = from.get_envname();
    to.required = from.get_required();
    to.several = from.get_items_expected_max() > 1;
    return to;
}

void add(const CLI::App& app, const std::string& path, std::vector<Command>& all) {
    Command command{path, app.get_description(), app.get_footer(), {}, {}, {}};
    for (const CLI::Option* option : app.get_options()) {
        if (option->get_group().empty()) continue;
        auto& list = option->nonpositional() ? command.options : command.positionals;
        list.push_back(read_option(*option));
    }
    std::vector<const CLI::App*> below = app.get_subcommands([](const CLI::App*) { return true; });
    std::erase_if(below, [](const CLI::App* one) { return one->get_group().empty(); });
    for (const CLI::App* one : below) command.commands.push_back(one->get_name());
    all.push_back(std::move(command));
    for (const CLI::App* one : below) add(*one, path + " " + one->get_name(), all);
}

}  // namespace

std::vector<Command> command_tree(const CLI::App& program) {
    std::vector<Command> all;
    add(program, program.get_name(), all);
    return all;
}

}  // namespace tessera
