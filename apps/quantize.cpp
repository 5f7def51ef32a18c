// tessera quantize: a bf16 or FP8 folder becomes one with MXFP4 experts, in the published layout.
#include <chrono>
#include <memory>

#include <fmt/format.h>

#include "base/error.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/progress.h"
#include "base/threads.h"
#include "weights/quantize_folder.h"

#include "commands.h"

namespace tessera {
namespace {

struct QuantizeOptions {
    std::string in, out, experts = "mxfp4", round = "nearest", calibrate;
    bool check = false;
    uint32_t threads = 0;
};

void quantize(const QuantizeOptions& options) {
    QuantizeRequest request;
    request.in = options.in;
    request.out = options.out;
    request.rounding = options.round == "nearest" ? BlockRounding::nearest : BlockRounding::mse;
    request.threads = options.threads > 0 ? options.threads : available_threads();
    QuantizeReport report;
    const auto begun = std::chrono::steady_clock::now();
    {
        Progress bar("quantizing");
        if (spdlog::should_log(spdlog::level::info))
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

constexpr const char* kExamples = R"(Examples:
  tessera quantize MiMo-V2-Flash MiMo-V2-Flash-FP4
A run that was killed goes on where it stopped when it is started again.
Exit code: 0, 2 for an error.
)";

}  // namespace

void add_quantize(CLI::App& program) {
    auto options = std::make_shared<QuantizeOptions>();
    CLI::App& command =
        *program.add_subcommand("quantize", "Round the experts of a bf16 or FP8 folder to MXFP4");
    command.footer(kExamples);
    command.add_option("in", options->in, "Folder of a bf16 or FP8 checkpoint")->required();
    command.add_option("out", options->out, "Folder to write; must not exist")->required();
    command.add_option("--experts", options->experts, "What the routed experts become")
        ->check(CLI::IsMember({"mxfp4"}))
        ->capture_default_str();
    command
        .add_option("--round", options->round,
                    "nearest: the scale of OCP MX; mse: the scale of least squared error")
        ->check(CLI::IsMember({"nearest", "mse"}))
        ->capture_default_str();
    command.add_option("--threads", options->threads, "Threads (default: all cores allowed)")
        ->check(CLI::Range(1, 1024));
    command.callback([options] { quantize(*options); });
}

}  // namespace tessera
