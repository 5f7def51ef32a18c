// tessera quantize: a bf16 or FP8 folder becomes one with MXFP4 experts, in the published layout;
// and what that changed.
#include <chrono>
#include <memory>
#include <optional>

#include <fmt/format.h>

#include "base/error.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/progress.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "reference/calibrate.h"
#include "text/tokenizer.h"
#include "weights/difference.h"
#include "weights/quantize_folder.h"

#include "commands.h"
#include "report.h"

namespace tessera {
namespace {

constexpr int kExitDiffers = 1;
constexpr uint32_t kCalibrationWindow = 512;  // tokens read from an empty cache

struct QuantizeOptions {
    std::string in, out, experts = "mxfp4", round = "nearest", calibrate;
    uint32_t calibrate_tokens = 4096;
    bool check = false;
    uint32_t threads = 0;
};

Weights bind_folder(const Checkpoint& checkpoint) {
    return bind(checkpoint,
                parse_shape(checkpoint.config, (checkpoint.folder / "config.json").string()));
}

bool shows_progress() {
    return spdlog::should_log(spdlog::level::info);
}

// ------------------------------------------------------------------ quantize

// Reads the text with the reference, which holds nothing but the mapped folder.
Calibration calibrate(const QuantizeOptions& options) {
    const Checkpoint checkpoint = open_checkpoint(options.in);
    const Weights weights = bind_folder(checkpoint);
    if (weights.shape.quantization.mxfp4_experts)
        fail("{}: its experts are MXFP4 already: there is nothing to round", options.in);
    const Tokenizer tokenizer = Tokenizer::load(checkpoint.folder / "tokenizer.json");
    std::vector<uint32_t> tokens =
        tokenizer.encode(read_text_file(options.calibrate), Specials::kAsText);
    if (tokens.empty()) fail("--calibrate {}: holds no text", options.calibrate);
    tokens.resize(std::min<size_t>(tokens.size(), options.calibrate_tokens));
    check_scales(checkpoint, weights.shape, 1);
    const Reference reference(weights, Rounding::bf16);
    Progress bar("calibrating", "tokens");
    const Calibration found(reference, tokens,
                            std::min(kCalibrationWindow, weights.shape.context_max),
                            [&](uint64_t done, uint64_t total) {
                                if (shows_progress()) bar.show(done, total);
                            });
    if (found.unvisited() > 0)
        spdlog::warn("{} tokens never chose {} experts: those are rounded without statistics",
                     tokens.size(), found.unvisited());
    return found;
}

void quantize(const QuantizeOptions& options) {
    if ((options.round == "calibrated") != !options.calibrate.empty())
        fail("--round calibrated and --calibrate TEXT need each other");
    QuantizeRequest request;
    request.in = options.in;
    request.out = options.out;
    request.rounding = options.round == "nearest" ? BlockRounding::nearest : BlockRounding::mse;
    request.threads = options.threads > 0 ? options.threads : available_threads();
    check_request(request);
    std::optional<Calibration> calibration;
    if (options.round == "calibrated") {
        calibration = calibrate(options);
        request.column_weights = [&](const std::string& module) {
            return calibration->column_weights(module);
        };
        // Another text would give other bytes to the shards that are left.
        request.details = fmt::format("calibrated {} {:016x}", options.calibrate_tokens,
                                      std::hash<std::string>()(read_text_file(options.calibrate)));
    }
    QuantizeReport report;
    const auto begun = std::chrono::steady_clock::now();
    {
        Progress bar("quantizing");
        if (shows_progress())
            request.progress = [&](uint64_t done, uint64_t total) { bar.show(done, total); };
        report = quantize_folder(request);
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
    fmt::print(
        "{}: {} matrices of experts rounded to MXFP4 ({}), {} -> {} in {} shards{}, read "
        "back and found whole; {:.1f} s\n",
        options.out, report.matrices, options.round, bytes_text(report.bytes_in),
        bytes_text(report.bytes_out), report.shards,
        report.shards_kept > 0
            ? fmt::format(", {} of them kept from an earlier run", report.shards_kept)
            : "",
        seconds);
}

// ------------------------------------------------------------------ --check

std::string decibels(const Difference& d) {
    return d.error > 0 ? fmt::format("{:.2f} dB", d.snr_db()) : "-";
}

// 0 if all but the experts is the same, else 1.
int check(const QuantizeOptions& options) {
    const Checkpoint a = open_checkpoint(options.in), b = open_checkpoint(options.out);
    const Weights original = bind_folder(a), other = bind_folder(b);
    const uint32_t threads = options.threads > 0 ? options.threads : available_threads();
    check_scales(a, original.shape, threads);
    check_scales(b, other.shape, threads);
    Differences found;
    {
        Progress bar("comparing", "matrices");
        found = compare_weights(original, other, threads, [&](uint64_t done, uint64_t total) {
            if (shows_progress()) bar.show(done, total);
        });
    }
    std::vector<std::vector<std::string>> table = {
        {"part", "elements", "changed", "largest error", "relative error", "SNR"}};
    bool rest_is_same = true;
    for (const auto& [part, d] : found.parts) {
        table.push_back({std::string(part_name(part)), fmt::format("{}", d.elements),
                         fmt::format("{}", d.changed), fmt::format("{:.3g}", d.largest),
                         fmt::format("{:.4f} %", 100 * d.relative()), decibels(d)});
        rest_is_same &= part == Part::experts || d.changed == 0;
    }
    print_table(table);
    if (found.worst.found.error > 0)
        fmt::print("furthest apart: {}, relative error {:.4f} %\n", found.worst.matrix,
                   100 * found.worst.found.relative());
    for (const std::string& what : other_differences(a, b)) {
        fmt::print("differs: {}\n", what);
        rest_is_same = false;
    }
    fmt::print("{}\n", rest_is_same ? "all but the experts has the same values"
                                    : "more than the experts differs");
    return rest_is_same ? 0 : kExitDiffers;
}

constexpr const char* kExamples = R"(Examples:
  tessera quantize MiMo-V2-Flash MiMo-V2-Flash-FP4
  tessera quantize MiMo-V2-Flash MiMo-V2-Flash-FP4 --round calibrated --calibrate code.txt
  tessera quantize --check MiMo-V2-Flash MiMo-V2-Flash-FP4
Then `tessera eval OUT --against IN TEXT` says what it cost. A run that was killed goes on where it
stopped when it is started again.
Exit code: 0, 1 if --check finds more than experts changed, 2 for an error.
)";

}  // namespace

void add_quantize(CLI::App& program) {
    auto options = std::make_shared<QuantizeOptions>();
    CLI::App& command =
        *program.add_subcommand("quantize", "Round the experts of a bf16 or FP8 folder to MXFP4");
    command.footer(kExamples);
    command.add_option("in", options->in, "Folder of a bf16 or FP8 checkpoint")
        ->type_name("FOLDER")
        ->required();
    command.add_option("out", options->out, "Folder to write; must not exist")
        ->type_name("FOLDER")
        ->required();
    command.add_option("--experts", options->experts, "What the routed experts become")
        ->check(CLI::IsMember({"mxfp4"}))
        ->capture_default_str();
    command
        .add_option("--round", options->round,
                    "nearest: the scale of OCP MX; mse: the scale of least squared error; "
                    "calibrated: errors weighed by what comes in")
        ->check(CLI::IsMember({"nearest", "mse", "calibrated"}))
        ->capture_default_str();
    command
        .add_option("--calibrate", options->calibrate,
                    "Text that tells calibrated what comes in, read slowly by the reference")
        ->type_name("FILE");
    command
        .add_option("--calibrate-tokens", options->calibrate_tokens, "So many tokens of it at most")
        ->check(CLI::Range(1, 1 << 24))
        ->capture_default_str();
    command.add_option("--threads", options->threads, "Threads (default: all cores allowed)")
        ->check(CLI::Range(1, 1024));
    command.add_flag("--check", options->check,
                     "Write nothing: compare two folders, IN the original, tensor by tensor");
    command.callback([options] {
        if (!options->check) return quantize(*options);
        if (const int code = check(*options)) throw CLI::RuntimeError(code);
    });
}

}  // namespace tessera
