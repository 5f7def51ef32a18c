// tessera bench speculation: what drafting brings on texts of several kinds, and whether it ever
// changes one. Every text is written in every mode, right after one another, and compared token for
// token: a machine's noise meets all modes, and a difference is an error, not a figure.
//
// Sessions of a model share what steps cost and what drafts were worth, as they do in a server: a
// text's speed is that of a program that goes on, not of its first second.
#include <algorithm>
#include <memory>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/progress.h"
#include "tessera/session.h"

#include "commands.h"
#include "device.h"
#include "report.h"
#include "speculation_report.h"
#include "suites.h"
#include "written.h"

namespace tessera {
namespace {

constexpr uint32_t kTokens = 128, kLosslessTokens = 48;
constexpr uint32_t kCostPrompts = 8;
constexpr int kExitTextsDiffer = 1;

struct SpeculationOptions {
    std::string model, folder;
    std::vector<std::string> suites, modes = {"auto", "off", "7"};
    std::vector<float> temperatures = {0, 1};
    uint32_t prompts = 0, tokens = 0, threads = 0, repeats = 3;
    Device device = Device::kCpu;
    uint64_t seed = 1;
    bool cost = false, lossless = false;
    std::string json, svg;
};

// "off" comes first: the others are held against it.
std::vector<SpeculationMode> parse_modes(const std::vector<std::string>& names) {
    std::vector<SpeculationMode> modes;
    for (const std::string& name : names) {
        if (std::ranges::find(modes, name, &SpeculationMode::name) != modes.end())
            fail("--modes {}: is given twice, once is enough", name);
        modes.push_back({name, parse_speculation(name).first});
    }
    std::ranges::stable_partition(
        modes, [](const SpeculationMode& m) { return m.speculation.mode == Speculate::kOff; });
    return modes;
}

// A model, and what it is asked to go on with.
struct Subject {
    Model model;
    std::vector<Suite> suites;

    uint64_t prompts() const {
        uint64_t count = 0;
        for (const Suite& suite : suites) count += suite.prompts.size();
        return count;
    }
    Json json(const SpeculationOptions& options) const {
        return {{"origin", origin()},
                {"model", model.info().summary},
                {"machine", model.info().machine},
                {"drafter", model.info().drafter},
                {"tokens", options.tokens},
                {"seed", options.seed}};
    }
};

Subject load_subject(const SpeculationOptions& options, const std::vector<SpeculationMode>& modes) {
    std::vector<Suite> suites = read_suites(options.folder, options.suites, options.prompts);
    LoadOptions loading;
    loading.threads = options.threads;
    loading.device = options.device;
    Model model = Model::load(
        options.model.empty() ? bundled_model() : std::filesystem::path(options.model), loading);
    const ModelInfo& info = model.info();
    for (const SpeculationMode& mode : modes)
        if (info.drafter.empty() && mode.speculation.mode == Speculate::kFixed)
            fail("--modes {}: the checkpoint has no drafter: pass --modes auto off", mode.name);
    spdlog::info("{}; {}; {}", info.summary, info.drafter.empty() ? "no drafter" : info.drafter,
                 info.machine);
    encode_suites(suites, model, options.tokens);
    return {std::move(model), std::move(suites)};
}

// Shows how many texts are written, unless all but warnings is unwanted.
class Counter {
  public:
    Counter(const char* what, uint64_t total) : progress_(what, "texts"), total_(total) {}
    void one_more() {
        ++done_;
        if (spdlog::should_log(spdlog::level::info)) progress_.show(done_, total_);
    }

  private:
    Progress progress_;
    uint64_t done_ = 0, total_;
};

// "" if the texts are the same.
std::string difference(const Prompt& prompt, const SpeculationMode& mode, const Written& text,
                       const SpeculationMode& standard_mode, const Written& standard) {
    const auto [a, b] = std::ranges::mismatch(text.tokens, standard.tokens);
    if (a == text.tokens.end() && b == standard.tokens.end()) return "";
    const auto at = static_cast<size_t>(a - text.tokens.begin());
    return fmt::format("{}: {} and {} differ at position {}, token {} of the answer: {}, not {}",
                       prompt.name, mode.name, standard_mode.name, prompt.tokens.size() + at, at,
                       a == text.tokens.end() ? "nothing" : fmt::format("{}", *a),
                       b == standard.tokens.end() ? "nothing" : fmt::format("{}", *b));
}

// ------------------------------------------------------------------ how fast

Measured measure(const Model& model, const Suite& suite, float temperature,
                 const std::vector<SpeculationMode>& modes, const SpeculationOptions& options,
                 Counter& counter) {
    Measured m{&suite, temperature, modes, {}};
    m.runs.resize(modes.size());
    for (auto& of_mode : m.runs) of_mode.resize(options.repeats);
    for (uint32_t repeat = 0; repeat < options.repeats; ++repeat) {
        for (size_t i = 0; i < suite.prompts.size(); ++i) {
            const Prompt& prompt = suite.prompts[i];
            Sampling sampling;
            sampling.temperature = temperature;
            sampling.seed = options.seed + i;
            for (size_t mode = 0; mode < modes.size(); ++mode) {
                m.runs[mode][repeat].push_back(write_text(model, sampling, modes[mode].speculation,
                                                          prompt.tokens, options.tokens));
                counter.one_more();
                const std::string wrong = difference(
                    prompt, modes[mode], m.runs[mode][repeat].back(), modes[0], m.runs[0][0][i]);
                if (wrong.empty()) continue;
                spdlog::error("at temperature {:g}, {}", temperature, wrong);
                throw CLI::RuntimeError(kExitTextsDiffer);
            }
        }
    }
    return m;
}

void bench_speed(SpeculationOptions options) {
    if (options.cost) {
        options.modes = {"off", "1", "2", "3", "4", "5", "6", "7"};
        options.temperatures.resize(1);
        options.repeats = 1;
        if (options.prompts == 0) options.prompts = kCostPrompts;
    }
    const std::vector<SpeculationMode> modes = parse_modes(options.modes);
    const Subject subject = load_subject(options, modes);
    const Model& model = subject.model;
    std::vector<Measured> all;
    {
        Counter counter("measuring", subject.prompts() * modes.size() *
                                         options.temperatures.size() * options.repeats);
        // What a first step pays once is nobody's: caches, and prices that are not known yet.
        const std::vector<Token>& first = subject.suites.front().prompts.front().tokens;
        for (const SpeculationMode& mode : modes)
            write_text(model, {}, mode.speculation, first, options.tokens);
        for (const Suite& suite : subject.suites)
            for (const float temperature : options.temperatures)
                all.push_back(measure(model, suite, temperature, modes, options, counter));
    }
    fmt::print(
        "{} prompts, {} tokens each, {} repeats, modes in turns; every text the same in all "
        "modes; hash {:016x}\n",
        subject.prompts(), options.tokens, options.repeats, hash_of(all));
    options.cost ? print_costs(all) : print_speculation(all);
    if (!options.json.empty()) {
        Json json = subject.json(options);
        json["hash"] = fmt::format("{:016x}", hash_of(all));
        json["found"] = speculation_json(all);
        write_json(json, options.json);
    }
    const std::string name = model.info().summary.substr(0, model.info().summary.find(':'));
    if (!options.svg.empty()) write_svg(speculation_bars(name, all), options.svg);
}

// ------------------------------------------------------------------ whether it changes a text

struct Setting {
    const char* name;
    Sampling sampling;
};

constexpr float kT = 1.0f;
const Setting kSettings[] = {
    {"greedy", {}},
    {"T 0.7", {.temperature = 0.7f}},
    {"T 1", {.temperature = kT}},
    {"T 1.3", {.temperature = 1.3f}},
    {"T 1, top-p 0.9", {.temperature = kT, .top_p = 0.9f}},
    {"T 1, top-k 40", {.temperature = kT, .top_k = 40}},
    {"T 1, min-p 0.05", {.temperature = kT, .min_p = 0.05f}},
};

// What a mode wrote in one setting.
struct Compared {
    uint64_t texts = 0, tokens = 0, steps = 0, chosen = 0, verified = 0, kept = 0, differ = 0;

    void add(const Written& text) {
        ++texts;
        tokens += text.tokens.size();
        steps += text.steps.size();
        chosen += text.chosen;
        for (const WrittenStep& step : text.steps) {
            verified += step.verified;
            kept += step.accepted;
        }
    }
    double tokens_per_step() const {
        return static_cast<double>(chosen) / static_cast<double>(steps);
    }
};

// Everything that is compared, and what was found to be wrong.
struct Comparison {
    std::vector<SpeculationMode> modes;
    std::vector<std::pair<const Setting*, std::vector<Compared>>> settings;  // by mode
    std::vector<std::string> wrongs;
    uint64_t hash = 0xcbf29ce484222325;  // FNV-1a over the hashes of the standard's texts
};

void compare_modes(const Model& model, const Setting& setting, const std::vector<Suite>& suites,
                   const SpeculationOptions& options, Counter& counter, Comparison& found) {
    std::vector<Compared> compared(found.modes.size());
    Sampling sampling = setting.sampling;
    sampling.seed = options.seed;
    for (const Suite& suite : suites) {
        for (const Prompt& prompt : suite.prompts) {
            Written standard;
            for (size_t mode = 0; mode < found.modes.size(); ++mode) {
                Written text = write_text(model, sampling, found.modes[mode].speculation,
                                          prompt.tokens, options.tokens);
                counter.one_more();
                compared[mode].add(text);
                if (mode == 0) {
                    for (uint32_t shift = 0; shift < 64; shift += 8)
                        found.hash = (found.hash ^ (text.hash >> shift & 255)) * 0x100000001b3u;
                    standard = std::move(text);
                    continue;
                }
                const std::string wrong =
                    difference(prompt, found.modes[mode], text, found.modes[0], standard);
                if (wrong.empty()) continue;
                ++compared[mode].differ;
                found.wrongs.push_back(fmt::format("{}, {}", setting.name, wrong));
            }
            ++sampling.seed;
        }
    }
    found.settings.emplace_back(&setting, std::move(compared));
}

void print_comparison(const Comparison& found) {
    std::vector<std::vector<std::string>> table = {
        {"setting", "mode", "texts", "tokens", "tau", "drafts verified", "kept", "differ"}};
    for (const auto& [setting, compared] : found.settings) {
        for (size_t mode = 0; mode < found.modes.size(); ++mode) {
            const Compared& c = compared[mode];
            table.push_back({setting->name, found.modes[mode].name, fmt::format("{}", c.texts),
                             fmt::format("{}", c.tokens),
                             fmt::format("{:.2f}", c.tokens_per_step()),
                             fmt::format("{}", c.verified), fmt::format("{}", c.kept),
                             mode == 0 ? "standard" : fmt::format("{}", c.differ)});
        }
    }
    print_table(table);
}

Json comparison_json(const Comparison& found) {
    Json list = Json::array();
    for (const auto& [setting, compared] : found.settings) {
        for (size_t mode = 0; mode < found.modes.size(); ++mode) {
            const Compared& c = compared[mode];
            list.push_back({{"setting", setting->name},
                            {"mode", found.modes[mode].name},
                            {"texts", c.texts},
                            {"tokens", c.tokens},
                            {"steps", c.steps},
                            {"drafts_verified", c.verified},
                            {"drafts_kept", c.kept},
                            {"differ", c.differ}});
        }
    }
    return list;
}

void bench_lossless(const SpeculationOptions& options) {
    Comparison found;
    found.modes = parse_modes(options.modes);
    const Subject subject = load_subject(options, found.modes);
    {
        Counter counter("comparing", subject.prompts() * found.modes.size() * std::size(kSettings));
        for (const Setting& setting : kSettings)
            compare_modes(subject.model, setting, subject.suites, options, counter, found);
    }
    print_comparison(found);
    fmt::print("\n{} prompts, {} tokens each; hash {:016x}: {}\n", subject.prompts(),
               options.tokens, found.hash,
               found.wrongs.empty() ? "every text is the same in all modes" : "TEXTS DIFFER");
    if (!options.json.empty()) {
        Json json = subject.json(options);
        json["hash"] = fmt::format("{:016x}", found.hash);
        json["found"] = comparison_json(found);
        json["differences"] = found.wrongs;
        write_json(json, options.json);
    }
    for (const std::string& wrong : found.wrongs) spdlog::error("{}", wrong);
    if (!found.wrongs.empty()) throw CLI::RuntimeError(kExitTextsDiffer);
}

constexpr const char* kExamples = R"(Examples:
  tessera bench speculation                                    all suites, auto against off and 7
  tessera bench speculation --suite code edit --prompts 8      a shorter look
  tessera bench speculation --json out.json --svg out.svg
  tessera bench speculation --cost                             steps of 1 to 8 rows: ms, experts
  tessera bench speculation --lossless                         seven ways to sample: same texts?
Exit code: 0, 1 if a text depends on the mode, 2 for an error.
)";

}  // namespace

void add_bench_speculation(CLI::App& bench) {
    auto options = std::make_shared<SpeculationOptions>();
    CLI::App& command = *bench.add_subcommand(
        "speculation", "Tokens a second with and without drafts, and that texts are the same");
    command.footer(kExamples);
    command.add_option("-m,--model", options->model, "Folder of a checkpoint (default: bundled)")
        ->type_name("FOLDER");
    command.add_option("--suite", options->suites, "Names of suites (default: all)");
    command.add_option("--suites", options->folder, "Their folder (default: bench/suites)")
        ->type_name("FOLDER");
    command.add_option("--prompts", options->prompts, "Of each suite, evenly (default: all)")
        ->check(CLI::Range(1, 1'000'000));
    command
        .add_option("-n,--tokens", options->tokens,
                    "Written to each prompt (default: 128; with --lossless 48)")
        ->check(CLI::Range(2, 1'000'000));
    command.add_option("-t,--temperature", options->temperatures, "0 is greedy")
        ->check(CLI::Range(0.0f, 100.0f))
        ->capture_default_str();
    command.add_option("--modes", options->modes, "auto, off, or 1 to 7 tokens drafted each time")
        ->check([](const std::string& given) { return parse_speculation(given).second; })
        ->capture_default_str();
    command.add_option("--repeats", options->repeats, "Of everything; the median is shown")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    command.add_option("--threads", options->threads, "Workers (default: all cores allowed)")
        ->check(CLI::Range(1, 1024));
    add_device_option(command, options->device);
    command.add_option("--seed", options->seed, "Of the first prompt; each has its own")
        ->capture_default_str();
    CLI::Option* const cost =
        command.add_flag("--cost", options->cost,
                         "Time and experts by rows of a step instead, at the first temperature");
    command
        .add_flag("--lossless", options->lossless,
                  "Compare the texts of seven ways to sample instead, and measure nothing")
        ->excludes(cost);
    command.add_option("--json", options->json, "Write all figures to this file")
        ->type_name("FILE");
    command.add_option("--svg", options->svg, "Draw tokens a second into this file")
        ->type_name("FILE");
    command.callback([options] {
        if (options->tokens == 0) options->tokens = options->lossless ? kLosslessTokens : kTokens;
        if (options->folder.empty()) options->folder = own_suites();
        options->lossless ? bench_lossless(*options) : bench_speed(*options);
    });
}

}  // namespace tessera
