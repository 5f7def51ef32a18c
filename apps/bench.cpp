// tessera bench: what this machine reads, and how much of it decoding uses. Looks behind the door:
// it needs the machine itself, not texts.
#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json.h"
#include "base/memory.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "model/traffic.h"
#include "reference/reference.h"
#include "runtime/cpu.h"
#include "weights/pack.h"
#include "weights/synthetic.h"

#include "commands.h"
#include "report.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begun) {
    return std::chrono::duration<double>(Clock::now() - begun).count();
}

struct BenchOptions {
    std::string model, synthetic;
    std::vector<uint32_t> threads, rows = {1, 8}, contexts = {64};
    std::string isa, activations = "bf16";
    uint32_t ranks = 1, repeats = 5;
    double seconds = 1.0;  // of one repetition
    bool reference = false;
    std::string json, svg, trace;
};

// ------------------------------------------------------------------ what is measured

// The weights of a folder, or synthetic ones, packed.
struct Subject {
    std::string name;
    PackedWeights packed;
};

PackOptions packing(uint32_t ranks) {
    PackOptions pack;
    pack.ranks = ranks;
    pack.fp8 = Fp8::unpack_in_cache;
    pack.threads = available_threads();
    return pack;
}

// All that can be refused, before anything is packed or measured.
void check_request(const BenchOptions& options, const Weights& weights) {
    if (const auto problem = ranks_problem(weights.shape, options.ranks))
        fail("--ranks: {}", *problem);
    const uint64_t bytes = packed_bytes(weights, options.ranks);
    const uint64_t available = available_memory_bytes();
    if (bytes > available)
        fail("the weights take {}, this machine has {} available", bytes_text(bytes),
             bytes_text(available));
    const uint32_t longest = std::ranges::max(options.contexts);
    const auto cache = static_cast<uint64_t>(
        step_traffic(weights.shape, {.rows = 1, .context = 1.0 * longest, .experts = 1}).cache);
    if (cache > available - bytes)
        fail("--context {}: its keys and values take {}, beside the weights this machine has {}",
             longest, bytes_text(cache), bytes_text(available - bytes));
}

Subject load_subject(const BenchOptions& options) {
    if (!options.synthetic.empty()) {
        const Shape shape = parse_shape(
            parse_json(read_text_file(options.synthetic), options.synthetic), options.synthetic);
        const SyntheticWeights made(shape, 1);
        check_request(options, made.weights());
        return {std::filesystem::path(options.synthetic).stem().string(),
                pack_weights(made.weights(), packing(options.ranks))};
    }
    const std::filesystem::path folder =
        options.model.empty() ? bundled_model() : std::filesystem::path(options.model);
    const Checkpoint checkpoint = open_checkpoint(folder);
    const Weights weights =
        bind(checkpoint, parse_shape(checkpoint.config, (folder / "config.json").string()));
    check_request(options, weights);
    check_scales(checkpoint, weights.shape, available_threads());
    return {canonical(folder).filename().string(), pack_weights(weights, packing(options.ranks))};
}

bool reads_prompt(uint32_t rows) {
    return rows > kDecodeRowsMax;
}

// One sequence that has read `context` tokens: their keys and values are random, since only how
// many there are matters for speed.
class Runner {
  public:
    Runner(CpuMachine& machine, uint32_t context)
        : machine_(machine),
          cache_(machine.weights().shape, machine.options().ranks, machine.options().context),
          context_(context) {
        cache_.fill_random(context, 7);
    }

    // A step of `rows` tokens after the context: verified, or more of them than that read as a
    // prompt is, whose last row alone needs logits. Which tokens changes from step to step, so that
    // the experts do too.
    void step(uint32_t rows) {
        const uint32_t vocab = machine_.weights().shape.vocab;
        for (uint32_t row = 0; row < rows; ++row) {
            state_ = state_ * 6364136223846793005u + 1442695040888963407u;
            tokens_[row] = static_cast<uint32_t>(state_ >> 33) % vocab;
            positions_[row] = context_ + row;
            caches_[row] = &cache_;
        }
        machine_.step({std::span(tokens_).first(rows), std::span(positions_).first(rows),
                       std::span(caches_).first(rows), reads_prompt(rows) ? rows - 1 : 0});
        experts_ += machine_.live_experts();
        ++steps_;
    }

    // FNV-1a over the bits of a row's logits.
    uint64_t hash(uint32_t row) const {
        std::vector<float> logits(machine_.weights().shape.vocab);
        machine_.logits(row, logits);
        uint64_t hash = 0xcbf29ce484222325;
        for (const float value : logits)
            hash = (hash ^ std::bit_cast<uint32_t>(value)) * 0x100000001b3u;
        return hash;
    }

    double experts_per_step() const {
        return static_cast<double>(experts_) / static_cast<double>(steps_);
    }

  private:
    CpuMachine& machine_;
    KvCache cache_;
    uint32_t context_;
    uint64_t state_ = 1;
    uint64_t experts_ = 0, steps_ = 0;
    std::vector<uint32_t> tokens_ = std::vector<uint32_t>(kStepRowsMax);
    std::vector<uint32_t> positions_ = std::vector<uint32_t>(kStepRowsMax);
    std::vector<const KvCache*> caches_ = std::vector<const KvCache*>(kStepRowsMax);
};

struct Point {
    uint32_t threads, rows, context;
    Spread ms;              // a step
    double experts;         // distinct, a layer of experts
    double bytes;           // read by a step
    double read_bandwidth;  // bytes a second, measured beside it: the median
    uint64_t hash;
    std::vector<std::pair<std::string, double>> shares;  // op -> share of the workers' time

    double bytes_per_second() const { return bytes / (1e-3 * ms.median); }
    double share() const { return bytes_per_second() / read_bandwidth; }
    double rows_per_second() const { return 1e3 * rows / ms.median; }
};

// Where the workers' time goes, over some traced steps.
std::vector<std::pair<std::string, double>> time_shares(CpuMachine& machine, Runner& runner,
                                                        uint32_t rows, const std::string& file) {
    constexpr uint32_t kSteps = 5;
    Trace trace(machine.options().workers * machine.options().ranks, size_t{1} << 18);
    machine.record(&trace);
    for (uint32_t i = 0; i < kSteps; ++i) runner.step(rows);
    machine.record(nullptr);
    std::vector<double> ns(std::size(kOps));
    double total = 0, wait = 0;
    for (const auto& stamps : trace.workers()) {
        for (const Trace::Stamp& s : stamps) {
            ns[static_cast<size_t>(s.tile.op)] += static_cast<double>(s.ended_ns - s.began_ns);
            wait += static_cast<double>(s.began_ns - s.waited_ns);
        }
        if (!stamps.empty())
            total += static_cast<double>(stamps.back().ended_ns - stamps.front().waited_ns);
    }
    std::vector<std::pair<std::string, double>> shares;
    for (const Op op : kOps) {
        const double share = ns[static_cast<size_t>(op)] / total;
        if (share > 0) shares.emplace_back(op_name(op), share);
    }
    shares.emplace_back("wait", wait / total);
    if (!file.empty()) trace.write(file);
    return shares;
}

Point measure(const Subject& subject, const BenchOptions& options, uint32_t threads, uint32_t rows,
              uint32_t context) {
    CpuOptions cpu;
    cpu.ranks = options.ranks;
    cpu.workers = std::max(1u, threads / options.ranks);
    cpu.context = context + kStepRowsMax;
    cpu.int8_activations = options.activations == "int8";
    if (!options.isa.empty()) {
        const auto isa = isa_of(options.isa);
        cpu.kernels = isa ? find_kernels(*isa) : nullptr;
        if (cpu.kernels == nullptr)
            fail("--isa {}: not known, or not on this processor", options.isa);
    }
    CpuMachine machine(subject.packed, cpu);
    Runner runner(machine, context);
    Point point{threads, rows, context, {}, 0, 0, 0, 0, {}};
    runner.step(rows);
    point.hash = runner.hash(rows - 1);
    std::vector<double> ms, bandwidth;
    for (uint32_t repeat = 0; repeat < options.repeats; ++repeat) {
        // In turns: what a neighbour on the machine takes, it takes from both.
        bandwidth.push_back(machine.read_bandwidth(options.seconds / 4));
        const auto begun = Clock::now();
        uint32_t steps = 0;
        do {
            runner.step(rows);
            ++steps;
        } while (seconds_since(begun) < options.seconds);
        ms.push_back(1e3 * seconds_since(begun) / steps);
    }
    const Shape& shape = subject.packed.shape;
    const auto layers = static_cast<double>(std::ranges::count(shape.is_moe, true));
    point.ms = spread_of(ms);
    point.read_bandwidth = spread_of(bandwidth).median;
    point.experts = layers > 0 ? runner.experts_per_step() / layers : 0;
    point.bytes = step_traffic(shape, {.rows = 1.0 * rows,
                                       .context = 1.0 * context,
                                       .experts = std::max(point.experts, 1e-9),
                                       .ranks = 1})
                      .total();
    point.shares = time_shares(machine, runner, rows, options.trace);
    return point;
}

double reference_ms(const BenchOptions& options) {
    const std::filesystem::path folder =
        options.model.empty() ? bundled_model() : std::filesystem::path(options.model);
    const Checkpoint checkpoint = open_checkpoint(folder);
    const Weights weights =
        bind(checkpoint, parse_shape(checkpoint.config, (folder / "config.json").string()));
    const Reference reference(weights, Rounding::bf16);
    Reference::Cache cache;
    std::vector<double> ms;
    for (uint32_t i = 0; i < 20; ++i) {
        const uint32_t token = i * 97 % weights.shape.vocab;
        const auto begun = Clock::now();
        reference.logits(reference.forward(cache, std::span(&token, 1)));
        ms.push_back(1e3 * seconds_since(begun));
    }
    return spread_of(ms).median;
}

// ------------------------------------------------------------------ what is shown

void print_points(const std::vector<Point>& points) {
    std::vector<std::vector<std::string>> table = {{"threads", "rows", "context", "ms a step",
                                                    "low..high", "rows/s", "experts", "GB/s",
                                                    "machine reads", "share", "hash"}};
    for (const Point& p : points) {
        table.push_back(
            {fmt::format("{}", p.threads), fmt::format("{}", p.rows), fmt::format("{}", p.context),
             fmt::format("{:.3f}", p.ms.median), fmt::format("{:.3f}..{:.3f}", p.ms.low, p.ms.high),
             fmt::format("{:.1f}", p.rows_per_second()), fmt::format("{:.1f}", p.experts),
             fmt::format("{:.2f}", 1e-9 * p.bytes_per_second()),
             fmt::format("{:.2f}", 1e-9 * p.read_bandwidth),
             fmt::format("{:.0f} %", 100 * p.share()), fmt::format("{:016x}", p.hash)});
    }
    print_table(table);
    const char* gap = "\n";
    for (const Point& p : points) {
        if (!reads_prompt(p.rows)) continue;
        fmt::print("{}prompt after {} tokens, {} at once, {} threads: {:.1f} tokens/s\n", gap,
                   p.context, p.rows, p.threads, p.rows_per_second());
        gap = "";
    }
    fmt::print("\nshare of the workers' time by op:\n");
    for (const Point& p : points) {
        std::string line =
            fmt::format("  {} threads, {} rows, context {}:", p.threads, p.rows, p.context);
        for (const auto& [op, share] : p.shares)
            line += fmt::format(" {} {:.1f} %,", op, 100 * share);
        line.back() = '\n';
        fmt::print("{}", line);
    }
}

Json points_json(const std::vector<Point>& points) {
    Json list = Json::array();
    for (const Point& p : points) {
        Json shares = Json::object();
        for (const auto& [op, share] : p.shares) shares[op] = share;
        list.push_back({{"threads", p.threads},
                        {"rows", p.rows},
                        {"context", p.context},
                        {"ms_per_step", spread_json(p.ms)},
                        {"rows_per_second", p.rows_per_second()},
                        {"reads_prompt", reads_prompt(p.rows)},
                        {"experts_per_layer", p.experts},
                        {"bytes_per_step", p.bytes},
                        {"bytes_per_second", p.bytes_per_second()},
                        {"read_bandwidth", p.read_bandwidth},
                        {"share_of_bandwidth", p.share()},
                        {"logits_hash", fmt::format("{:016x}", p.hash)},
                        {"time_shares", shares}});
    }
    return list;
}

// Over contexts if there are several, else over threads: a line for each number of rows.
Chart chart_of(const std::string& name, const std::vector<Point>& points, bool over_contexts) {
    Chart chart{name + ": rows a second",
                over_contexts ? "tokens of context" : "threads",
                "rows a second",
                over_contexts,
                {}};
    for (const Point& p : points) {
        const std::string line = over_contexts
                                     ? fmt::format("{} rows, {} threads", p.rows, p.threads)
                                     : fmt::format("{} rows, context {}", p.rows, p.context);
        auto found = std::ranges::find(chart.series, line, &Series::name);
        if (found == chart.series.end()) found = chart.series.insert(found, {line, {}});
        found->points.emplace_back(over_contexts ? p.context : p.threads, p.rows_per_second());
    }
    return chart;
}

void bench_decode(const BenchOptions& options) {
    const auto packed_at = Clock::now();
    const Subject subject = load_subject(options);
    const double pack_seconds = seconds_since(packed_at);
    const Traffic one = step_traffic(subject.packed.shape, {.rows = 1});
    fmt::print("{}: {} packed in {:.1f} s; a token reads {} of weights\n\n", subject.name,
               bytes_text(subject.packed.bytes()), pack_seconds,
               bytes_text(static_cast<uint64_t>(one.weights())));
    // How long a step takes does not depend on what a model was trained for.
    const uint32_t longest = std::ranges::max(options.contexts);
    if (longest > subject.packed.shape.context_max)
        fmt::print(
            "context {} is beyond the model's {}: measured, but no text would be good there\n\n",
            longest, subject.packed.shape.context_max);
    std::vector<uint32_t> threads = options.threads;
    if (threads.empty()) threads = {available_threads()};
    std::vector<Point> points;
    for (const uint32_t count : threads) {
        for (const uint32_t rows : options.rows) {
            for (const uint32_t context : options.contexts)
                points.push_back(measure(subject, options, count, rows, context));
        }
    }
    print_points(points);
    Json found = {{"origin", origin()},
                  {"model", subject.name},
                  {"weight_bytes", subject.packed.bytes()},
                  {"context_max", subject.packed.shape.context_max},
                  {"activations", options.activations},
                  {"isa", options.isa.empty() ? isa_name(best_kernels().isa) : options.isa},
                  {"ranks", options.ranks},
                  {"points", points_json(points)}};
    if (options.reference) {
        const double ms = reference_ms(options);
        found["reference_ms_per_step"] = ms;
        fmt::print("\nthe reference takes {:.2f} ms a step of one row: {:.1f} times as long\n", ms,
                   ms / points.front().ms.median);
    }
    if (!options.json.empty()) write_json(found, options.json);
    if (!options.svg.empty())
        write_svg(chart_of(subject.name, points, options.contexts.size() > 1), options.svg);
}

// ------------------------------------------------------------------ the machine alone

void bench_machine(const BenchOptions& options) {
    constexpr uint64_t kBytes = uint64_t{2} << 30;  // larger than any cache
    Subject subject;
    PackedRank& rank = subject.packed.ranks.emplace_back();
    rank.arena = Arena(std::min(kBytes, available_memory_bytes() / 2));
    const uint32_t all = available_threads();
    parallel_for(64, all, [&](size_t i) {
        const uint64_t piece = rank.arena.bytes() / 64;
        std::memset(rank.arena.data() + i * piece, static_cast<int>(i + 1), piece);
    });
    std::vector<std::vector<std::string>> table = {{"threads", "GB/s", "low..high", "a thread"}};
    Json points = Json::array();
    Chart chart{"read bandwidth", "threads", "GB/s", false, {{"read", {}}}};
    std::vector<uint32_t> counts = options.threads;
    for (uint32_t t = 1; counts.empty() || (options.threads.empty() && counts.back() < all); ++t)
        counts.push_back(t);
    for (const uint32_t threads : counts) {
        Workers workers(1, threads, true);
        std::vector<double> rates;
        for (uint32_t i = 0; i < options.repeats; ++i)
            rates.push_back(1e-9 * read_bandwidth(workers, subject.packed, options.seconds));
        const Spread s = spread_of(rates);
        table.push_back({fmt::format("{}", threads), fmt::format("{:.2f}", s.median),
                         fmt::format("{:.2f}..{:.2f}", s.low, s.high),
                         fmt::format("{:.2f}", s.median / threads)});
        points.push_back({{"threads", threads}, {"gb_per_second", spread_json(s)}});
        chart.series.front().points.emplace_back(threads, s.median);
    }
    print_table(table);
    if (!options.json.empty()) write_json({{"origin", origin()}, {"points", points}}, options.json);
    if (!options.svg.empty()) write_svg(chart, options.svg);
}

constexpr const char* kExamples = R"(Examples:
  tessera bench machine                                   read bandwidth by threads
  tessera bench decode --reference                        the bundled model, 1 and 8 rows
  tessera bench decode --synthetic bench/shapes/synthetic.json
  tessera bench decode --threads 1 2 --context 1024 8192 32768 --json out.json --svg out.svg
  tessera bench decode --rows 64 --context 0 1024         tokens/s of a prompt
  tessera bench activations FILE... --reference-tokens 4096
  tessera bench speculation --suite code edit             tokens/s with and without drafts
  tessera bench masks tests/grammar/schemas.json          answers held to a schema
  tessera bench decode --rows 8 --trace step.json         a timeline for ui.perfetto.dev
Shares are of the read bandwidth that is measured in turns with the steps.
)";

}  // namespace

void add_bench(CLI::App& program) {
    auto options = std::make_shared<BenchOptions>();
    CLI::App& bench = *program.add_subcommand("bench", "Measure this machine and decoding on it");
    bench.require_subcommand(1);
    bench.footer(kExamples);
    const auto add_shared = [&](CLI::App& command) {
        command.add_option("--threads", options->threads, "Numbers of threads (default: all)")
            ->check(CLI::Range(1, 1024));
        command.add_option("--repeats", options->repeats, "Repetitions; the median is shown")
            ->check(CLI::Range(1, 1000))
            ->capture_default_str();
        command.add_option("--seconds", options->seconds, "Of one repetition")
            ->check(CLI::Range(0.01, 600.0))
            ->capture_default_str();
        command.add_option("--json", options->json, "Write all figures to this file")
            ->type_name("FILE");
        command.add_option("--svg", options->svg, "Draw them into this file")->type_name("FILE");
    };
    CLI::App& machine = *bench.add_subcommand("machine", "Read bandwidth by threads");
    add_shared(machine);
    machine.callback([options] { bench_machine(*options); });
    CLI::App& decode =
        *bench.add_subcommand("decode", "Time of a step, and its share of bandwidth");
    add_shared(decode);
    decode.footer(kExamples);
    decode.add_option("-m,--model", options->model, "Folder of a checkpoint (default: bundled)")
        ->type_name("FOLDER");
    decode
        .add_option("--synthetic", options->synthetic, "A config.json: random weights of its shape")
        ->type_name("FILE")
        ->excludes("--model");
    decode
        .add_option("--rows", options->rows,
                    fmt::format("Rows of a step, 1 to {}; more than {} read a prompt", kStepRowsMax,
                                kDecodeRowsMax))
        ->check(CLI::Range(1u, kStepRowsMax))
        ->capture_default_str();
    decode
        .add_option("--context", options->contexts,
                    "Tokens before the step, also beyond the model's context")
        ->check(CLI::Range(0u, 1u << 30))
        ->capture_default_str();
    decode.add_option("--ranks", options->ranks, "Groups of workers: 1, 2, 4 or 8")
        ->capture_default_str();
    decode.add_option("--isa", options->isa, "Instructions (default: the fastest here)")
        ->type_name("{portable,avx2,avx512,avx512-vnni}");
    decode.add_option("--activations", options->activations, "bf16 or int8")
        ->check(CLI::IsMember({"bf16", "int8"}))
        ->capture_default_str();
    decode.add_flag("--reference", options->reference, "Time the reference too")
        ->excludes("--synthetic");
    decode.add_option("--trace", options->trace, "Write a timeline of the last steps")
        ->type_name("FILE");
    decode.callback([options] { bench_decode(*options); });
    add_bench_activations(bench);
    add_bench_masks(bench);
    add_bench_speculation(bench);
    add_bench_quantize(bench);
}

}  // namespace tessera
