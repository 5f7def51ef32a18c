// tessera explain: the program of a step and the least time it can take, from a shape alone.
#include "plan/explain.h"

#include <cmath>
#include <memory>

#include <fmt/format.h>

#include "base/error.h"
#include "base/memory.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "model/published.h"
#include "plan/check.h"
#include "plan/floor.h"

#include "commands.h"
#include "report.h"

namespace tessera {
namespace {

struct ExplainOptions {
    std::string model, shape, machine;
    uint32_t rows = 1, ranks = 1, workers = 0, context = 4096;
    double experts = 0;
    bool tiles = false, drafter = false;
};

PublishedModel wanted_model(const ExplainOptions& options) {
    if (!options.shape.empty()) {
        if (auto known = published_model(options.shape)) return *known;
        if (!std::filesystem::exists(options.shape))
            fail("--shape {}: no such file; the names known are mimo-v2.5-pro and mimo-v2-flash",
                 options.shape);
        return {parse_shape(parse_json(read_text_file(options.shape), options.shape,
                                       {.trailing_commas = true}),
                            options.shape),
                std::nullopt};
    }
    const std::filesystem::path folder =
        options.model.empty() ? bundled_model() : std::filesystem::path(options.model);
    const auto config = [](const std::filesystem::path& file) {
        return parse_json(read_text_file(file), file.string(), {.trailing_commas = true});
    };
    PublishedModel model{parse_shape(config(folder / "config.json"), folder.string()), {}};
    const std::filesystem::path drafter = folder / "dflash" / "config.json";
    if (exists(drafter))
        model.drafter = parse_drafter_shape(config(drafter), model.shape, drafter.string());
    return model;
}

MachineSpec wanted_machine(const std::string& name) {
    if (auto known = known_machine(name)) return *known;
    if (!std::filesystem::exists(name))
        fail("--machine {}: no such file; the names known are h200 and b200", name);
    return parse_machine(parse_json(read_text_file(name), name), name);
}

void print_floor(const PublishedModel& model, const ExplainOptions& options) {
    const MachineSpec machine = wanted_machine(options.machine);
    const TrafficCase at{1.0 * options.rows, 1.0 * options.context, options.experts, options.ranks};
    const Floor floor = floor_of(model.shape, model.drafter, at, machine);
    const Traffic& t = floor.traffic;
    const auto gigabytes = [](double bytes) { return fmt::format("{:.3f}", 1e-9 * bytes); };
    fmt::print(
        "the floor on {}: {:.2f} TB/s a rank, {:.1f} us an exchange; {} rows, {} tokens of "
        "context\n\n",
        machine.name, 1e-12 * machine.bytes_per_second, 1e6 * machine.exchange_seconds,
        options.rows, options.context);
    std::vector<std::vector<std::string>> table = {{"a rank reads", "GB"}};
    const double live =
        options.experts > 0 ? options.experts : distinct_experts(model.shape, options.rows);
    table.push_back({fmt::format("experts ({:.1f} a layer)", live), gigabytes(t.experts)});
    table.push_back({"attention (qkv, o_proj, cache)", gigabytes(t.qkv + t.output + t.cache)});
    table.push_back({"router", gigabytes(t.router)});
    table.push_back({"head", gigabytes(t.head)});
    if (model.drafter) table.push_back({"drafter and head", gigabytes(t.drafter)});
    table.push_back({"dense layer, norms", gigabytes(t.dense + t.norms)});
    table.push_back({"all", gigabytes(t.total())});
    print_table(table);
    fmt::print("\n{:.2f} ms to read", 1e3 * floor.read_seconds);
    if (floor.exchanges > 0)
        fmt::print(", {:.2f} ms with {} exchanges", 1e3 * floor.seconds, floor.exchanges);
    fmt::print("\n\n");
    std::vector<std::vector<std::string>> speeds = {{"τ", "tokens/s"}};
    for (const double tau : {1.0, 2.0, 3.0, 4.3, 5.5, 6.3, 8.0}) {
        if (tau > options.rows) break;
        speeds.push_back(
            {fmt::format("{:.1f}", tau), fmt::format("{:.0f}", floor.tokens_per_second(tau))});
    }
    print_table(speeds);
}

// A block behind as much context as a step can have committed: what is run between two steps.
void make_drafters(PlanRequest& request, const PublishedModel& model) {
    if (!model.drafter)
        fail(
            "--drafter: this model has none; try --shape mimo-v2.5-pro, or --model with a folder "
            "that has dflash/config.json");
    const DrafterShape& d = *model.drafter;
    if (const auto problem = drafter_ranks_problem(d, request.ranks)) fail("--ranks: {}", *problem);
    request.shape = layers_of(d, model.shape);
    request.rows = d.block;
    request.context += d.block;
    request.draft = {.context_rows = d.block, .taps = static_cast<uint32_t>(d.taps.size())};
}

void explain_program(const PublishedModel& model, const ExplainOptions& options) {
    if (const auto problem = ranks_problem(model.shape, options.ranks))
        fail("--ranks: {}", *problem);
    PlanRequest request;
    request.shape = model.shape;
    request.ranks = options.ranks;
    request.workers =
        options.workers > 0 ? options.workers : std::max(1u, available_threads() / options.ranks);
    request.rows = options.rows;
    request.context = options.context;
    if (options.drafter) {
        make_drafters(request, model);
    } else if (model.shape.quantization.mxfp4_experts) {
        request.blocks = Blocks::int16;
    }
    const Program program = plan(request);
    fmt::print("{}", options.tiles ? explain_tiles(program) : explain(program));
    const auto fault = check(program);
    if (fault) fail("the program is wrong: {}", *fault);
    if (!options.tiles)
        fmt::print(
            "\nchecked: it ends under any fair schedule, reads nothing before it is written, "
            "reads every weight once, and is balanced\n\n");
}

constexpr const char* kExamples = R"(Examples:
  tessera explain                                        the bundled model, one row
  tessera explain --rows 8 --workers 2 --tiles           every tile, with what it waits for
  tessera explain --shape mimo-v2.5-pro --ranks 8 --rows 8 --machine h200
  tessera explain --shape mimo-v2.5-pro --ranks 8 --drafter
                                                         what fills a block between two steps
A machine FILE is JSON: {"name": "mine", "read_gb_per_second": 12.5, "exchange_us": 0}
)";

}  // namespace

void add_explain(CLI::App& program) {
    auto options = std::make_shared<ExplainOptions>();
    CLI::App& command = *program.add_subcommand(
        "explain", "Print the program of a step, and the least time it can take");
    command.footer(kExamples);
    command.add_option("-m,--model", options->model, "Folder of a checkpoint (default: bundled)")
        ->type_name("FOLDER");
    command.add_option("--shape", options->shape, "mimo-v2.5-pro, mimo-v2-flash or a config.json")
        ->type_name("NAME|FILE");
    command.add_option("--rows", options->rows, "Rows of the step")
        ->check(CLI::Range(1, 64))
        ->capture_default_str();
    command.add_option("--ranks", options->ranks, "1, 2, 4 or 8")->capture_default_str();
    command
        .add_option("--workers", options->workers, "Of each rank (default: this machine's threads)")
        ->check(CLI::Range(1, 1024));
    command.add_option("--context", options->context, "Tokens before the step")
        ->check(CLI::Range(1, 1 << 28))
        ->capture_default_str();
    command.add_option("--experts", options->experts,
                       "Distinct experts a layer (default: what random routing gives)");
    command
        .add_option("--machine", options->machine, "h200, b200 or a file: print the floor there")
        ->type_name("NAME|FILE");
    command.add_flag("--tiles", options->tiles, "Print every tile");
    command.add_flag("--drafter", options->drafter,
                     "Print the drafter's program, not the target's; its rows are its block");
    command.callback([options] {
        const PublishedModel model = wanted_model(*options);
        explain_program(model, *options);
        if (!options->machine.empty()) print_floor(model, *options);
    });
}

}  // namespace tessera
