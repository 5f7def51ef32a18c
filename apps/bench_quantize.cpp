// tessera bench quantize: how fast weights in memory become MXFP4, against how fast the same
// threads can read that memory and do nothing else.
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <vector>

#include <fmt/format.h>

#include "base/check.h"
#include "base/memory.h"
#include "base/threads.h"
#include "tiles/kernels.h"
#include "weights/quantize.h"

#include "commands.h"
#include "report.h"

namespace tessera {
namespace {

constexpr size_t kPieceBytes = size_t{1} << 20;  // of bf16, a task

struct BenchQuantizeOptions {
    uint32_t mib = 512, threads = 0, repeats = 9;
    std::string json;
};

using Clock = std::chrono::steady_clock;

// Gigabytes a second of `repeats` runs, the first of which is not counted: it finds cold pages.
template <typename Run>
Spread rates(uint32_t repeats, double bytes, const Run& run) {
    std::vector<double> found;
    for (uint32_t i = 0; i <= repeats; ++i) {
        const auto begun = Clock::now();
        run();
        const double seconds = std::chrono::duration<double>(Clock::now() - begun).count();
        if (i > 0) found.push_back(1e-9 * bytes / seconds);
    }
    return spread_of(std::move(found));
}

void bench_quantize(const BenchQuantizeOptions& options) {
    const uint32_t threads = options.threads > 0 ? options.threads : available_threads();
    const size_t pieces = options.mib;
    const size_t elements = kPieceBytes / 2;
    std::vector<std::byte> weights(pieces * kPieceBytes), codes(pieces * elements / 2),
        scales(pieces * elements / kMxBlock);
    // Normal-looking bf16: any sign and mantissa, exponents within a factor of a few hundred.
    parallel_for(pieces, threads, [&](size_t piece) {
        uint64_t state = piece + 1;
        for (size_t i = 0; i < elements; ++i) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            const auto bits =
                static_cast<uint16_t>((state >> 40 & 0x807f) | (116 + (state >> 60) / 2) << 7);
            std::memcpy(&weights[piece * kPieceBytes + 2 * i], &bits, 2);
        }
    });
    std::atomic<uint64_t> kept = 0;  // no load can be left out
    const double read_bytes = static_cast<double>(weights.size());
    const Spread read = rates(options.repeats, read_bytes, [&] {
        parallel_for(pieces, threads, [&](size_t piece) {
            kept += best_kernels().read(&weights[piece * kPieceBytes], kPieceBytes);
        });
    });
    const double moved = read_bytes + static_cast<double>(codes.size() + scales.size());
    std::atomic<bool> finite = true;
    const Spread nearest = rates(options.repeats, moved, [&] {
        parallel_for(pieces, threads, [&](size_t piece) {
            const size_t code_bytes = elements / 2, scale_bytes = elements / kMxBlock;
            if (!quantize_nearest(std::span(weights).subspan(piece * kPieceBytes, kPieceBytes),
                                  std::span(codes).subspan(piece * code_bytes, code_bytes),
                                  std::span(scales).subspan(piece * scale_bytes, scale_bytes)))
                finite = false;
        });
    });
    CHECK(finite);
    const auto words = [](const Spread& s) {
        return fmt::format("{:.2f} GB/s ({:.2f} to {:.2f})", s.median, s.low, s.high);
    };
    fmt::print("{} of bf16, {} threads, median of {} (least to most)\n", bytes_text(weights.size()),
               threads, options.repeats);
    fmt::print("reading, and nothing else      {}\n", words(read));
    fmt::print("to MXFP4 (nearest), read + written   {}: {:.0f} % of that\n", words(nearest),
               100 * nearest.median / read.median);
    if (!options.json.empty())
        write_json({{"origin", origin()},
                    {"bytes", weights.size()},
                    {"threads", threads},
                    {"read_gb_s", spread_json(read)},
                    {"nearest_gb_s", spread_json(nearest)}},
                   options.json);
}

}  // namespace

void add_bench_quantize(CLI::App& bench) {
    auto options = std::make_shared<BenchQuantizeOptions>();
    CLI::App& command = *bench.add_subcommand(
        "quantize", "How fast bf16 in memory becomes MXFP4, against reading it");
    command.add_option("--mib", options->mib, "MiB of bf16; more than the caches hold")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    command.add_option("--threads", options->threads, "Threads (default: all cores allowed)")
        ->check(CLI::Range(1, 1024));
    command.add_option("--repeats", options->repeats, "Of each measurement")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    command.add_option("--json", options->json, "Write all figures to this file")
        ->type_name("FILE");
    command.callback([options] { bench_quantize(*options); });
}

}  // namespace tessera
