// tessera doctor: what this machine can do, what it lacks, and what to do about it.
#include "doctor.h"

#include <algorithm>
#include <memory>

#include <fmt/format.h>
#include <unistd.h>

#include "base/error.h"

#include "commands.h"

namespace tessera {
namespace {

constexpr int kExitUnhealthy = 1;

std::string_view verdict_name(Verdict verdict) {
    switch (verdict) {
        case Verdict::kFine:
            return "fine";
        case Verdict::kNotable:
            return "notable";
        case Verdict::kBroken:
            return "broken";
    }
    return "";
}

void print(const Examination& all) {
    size_t topic_width = 0;
    for (const Finding& one : all.findings) topic_width = std::max(topic_width, one.topic.size());
    for (const Finding& one : all.findings) {
        const char* const mark = one.verdict == Verdict::kFine      ? " "
                                 : one.verdict == Verdict::kNotable ? "!"
                                                                    : "X";
        fmt::print("{} {:<{}}  {}\n", mark, one.topic, topic_width, one.found);
        if (!one.means.empty()) fmt::print("  {:<{}}    {}\n", "", topic_width, one.means);
        if (!one.fix.empty()) fmt::print("  {:<{}}  {}\n", "", topic_width, one.fix);
    }
}

// The fixes again, where the eye stops.
void print_end(const Examination& all) {
    const auto count = [&](Verdict verdict) {
        return std::ranges::count(all.findings, verdict, &Finding::verdict);
    };
    const auto broken = count(Verdict::kBroken), notable = count(Verdict::kNotable);
    fmt::print("\n");
    for (const Finding& one : all.findings)
        if (one.verdict != Verdict::kFine) fmt::print("{}: {}\n", one.topic, one.fix);
    if (broken > 0)
        fmt::print("{} of these must be mended before tessera runs here\n", broken);
    else if (notable > 0)
        fmt::print("tessera runs here; these would make it better\n");
    else
        fmt::print("nothing is wrong\n");
}

nlohmann::ordered_json json_of(const Examination& all) {
    nlohmann::ordered_json findings = nlohmann::ordered_json::array();
    for (const Finding& one : all.findings)
        findings.push_back({{"topic", one.topic},
                            {"verdict", verdict_name(one.verdict)},
                            {"found", one.found},
                            {"means", one.means},
                            {"fix", one.fix}});
    nlohmann::ordered_json json = all.facts;
    json["findings"] = std::move(findings);
    json["healthy"] = all.healthy();
    return json;
}

struct DoctorOptions {
    std::string model, server;
    bool json = false;
};

// The bundled model if none was given; none if that is not there either.
std::optional<std::filesystem::path> wanted_model(const std::string& given, Examination& all) {
    if (!given.empty()) return given;
    try {
        return bundled_model();
    } catch (const Error& missing) {
        all.add({"model", missing.what(), "", Verdict::kBroken,
                 "pass --model FOLDER, or unpack or install tessera again"});
        return std::nullopt;
    }
}

int doctor(const DoctorOptions& options) {
    Examination all;
    if (!options.server.empty()) {
        examine_server(options.server, all);
    } else {
        const MachineFound machine = examine_machine(all);
        examine_models(wanted_model(options.model, all), machine, all);
    }
    if (options.json) {
        fmt::print("{}\n", json_of(all).dump(1));
    } else {
        print(all);
        print_end(all);
    }
    return all.healthy() ? 0 : kExitUnhealthy;
}

constexpr const char* kExamples = R"(Examples:
  tessera doctor                                 this machine and the bundled model
  tessera doctor --model ~/models/MiMo-V2-Flash  does it fit, and how fast can it be
  tessera doctor --json                          the same for a program
  tessera doctor --server http://127.0.0.1:8080  a running server: ready or not
Exit code: 0 if all is there, 1 if something essential is missing, 2 for an error.
)";

}  // namespace

bool Examination::healthy() const {
    return std::ranges::find(findings, Verdict::kBroken, &Finding::verdict) == findings.end();
}

void add_doctor(CLI::App& program) {
    auto options = std::make_shared<DoctorOptions>();
    CLI::App& command =
        *program.add_subcommand("doctor", "Say what this machine can do and what it lacks");
    command.footer(kExamples);
    CLI::Option* const model =
        command
            .add_option("-m,--model", options->model,
                        "Folder of a checkpoint (default: the bundled model)")
            ->type_name("FOLDER");
    command.add_option("--server", options->server, "Ask a running server instead of this machine")
        ->type_name("URL")
        ->excludes(model);
    command.add_flag("--json", options->json, "JSON instead of lines");
    command.callback([options] {
        if (const int code = doctor(*options)) throw CLI::RuntimeError(code);
    });
}

}  // namespace tessera
