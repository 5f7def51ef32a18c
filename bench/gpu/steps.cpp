// Whole steps on one card: a verify step of 8 rows and a drafted block, by one launch and by one a
// phase, with the time of every kind of phase. Weights are random, or a folder's.
//   gpu_steps [--shape NAME | --model FOLDER] [--ranks N] [--context N] [--experts N,...] [--rows
//   N,...]
//             [--layers N] [--repeats N] [--trace FILE] [--json FILE]
#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/mask_embedding.h"
#include "model/published.h"
#include "model/traffic.h"
#include "runtime/course.h"
#include "runtime/gpu/fill.h"
#include "runtime/gpu/machine.h"
#include "runtime/gpu/plans.h"
#include "runtime/gpu/rounds_machine.h"
#include "runtime/gpu/stamps.h"

namespace tessera::gpu {
namespace {

using nlohmann::json;

struct Arguments {
    std::string shape = "mimo-v2.5-pro", model, out, trace;
    uint32_t ranks = 8, context = 4096, layers = 0, repeats = 30;
    std::vector<uint32_t> experts = {8, 38, 60}, rows = {8};
    double ceiling = 0;  // GB/s that this card reads, from ground; 0: no shares
};

struct Spread {
    double median, low, high;
};
Spread spread_of(std::vector<double> values) {
    std::ranges::sort(values);
    return {values[values.size() / 2], values.front(), values.back()};
}
json to_json(const Spread& s) {
    return {{"median", s.median}, {"low", s.low}, {"high", s.high}};
}

uint64_t hash_of(const std::vector<float>& values) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const float value : values) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        hash = (hash ^ bits) * 0x100000001b3u;
    }
    return hash;
}

// Experts that share the choices of 8 rows so that about `distinct` of them are chosen.
uint32_t candidates_for(uint32_t distinct, const Shape& s, uint32_t rows) {
    if (distinct <= s.experts_per_token) return s.experts_per_token;
    Shape fewer = s;
    for (fewer.experts = s.experts_per_token; fewer.experts < s.experts; ++fewer.experts)
        if (distinct_experts(fewer, rows) >= distinct) break;
    return fewer.experts;
}

void want_experts(const DeviceWeights& weights, uint32_t candidates) {
    const uint32_t experts = weights.shape.experts;
    std::vector<float> bias(experts, -10.0f);
    for (uint32_t e = 0; e < candidates; ++e) bias[uint64_t{e} * experts / candidates] = 0;
    for (const PackedLayer& layer : weights.layers) {
        if (layer.correction_bias.empty()) continue;
        check_device(cudaMemcpy(const_cast<float*>(layer.correction_bias.data()), bias.data(),
                                experts * sizeof(float), cudaMemcpyHostToDevice),
                     "choosing experts");
    }
}

Step step_of(uint32_t rows, uint32_t context, const GpuCache& cache, const Shape& s) {
    Step step{};
    step.rows = rows;
    step.runs = 1;
    step.run[0] = {0, rows, context - rows, 0, cache.data()};
    for (uint32_t i = 0; i < rows; ++i) {
        step.tokens[i] = (i * 7919 + 17) % s.vocab;
        step.positions[i] = context - rows + i;
    }
    return step;
}

// ms of `repeats` steps, each alone, after some to warm up.
Spread time_of(Walker& walker, const Step& step, uint32_t repeats, cudaStream_t stream) {
    cudaEvent_t begin, end;
    check_device(cudaEventCreate(&begin), "timing");
    check_device(cudaEventCreate(&end), "timing");
    std::vector<double> times;
    for (uint32_t i = 0; i < repeats + 5; ++i) {
        check_device(cudaEventRecord(begin, stream), "timing");
        walker.launch(step);
        check_device(cudaEventRecord(end, stream), "timing");
        walker.finish();
        float ms = 0;
        check_device(cudaEventElapsedTime(&ms, begin, end), "timing");
        if (i >= 5) times.push_back(ms);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return spread_of(times);
}

std::vector<float> logits_of(const Walker& walker, uint32_t rows) {
    std::vector<float> logits(size_t{rows} * walker.vocab());
    check_device(
        cudaMemcpy(logits.data(), walker.logits(), logits.size() * 4, cudaMemcpyDeviceToHost),
        "reading logits");
    return logits;
}

// Bytes of weights that a phase reads when `live` experts of a layer are.
double bytes_of(const Phase& p, double live) {
    return static_cast<double>(phase_bytes(p)) * (p.moe ? live : 1.0);
}

// What a step spends on each op: from the end of the phase before to the end of its own, by
// whichever block comes last; and how long a block waits at the barrier before it, on average.
json by_op(const Walker& walker, double live, double ceiling) {
    const std::vector<Stamp> stamps = walker.stamps();
    const uint32_t blocks = walker.blocks();
    struct Sum {
        double us = 0, waited = 0, prepared = 0, streamed = 0, paged = 0, summed = 0, finished = 0,
               bytes = 0;
        uint32_t phases = 0;
    };
    std::map<std::string, Sum> sums;
    uint64_t before = UINT64_MAX;
    for (uint32_t b = 0; b < blocks; ++b) before = std::min(before, stamps[b].began);
    double total = 0;
    for (size_t i = 0; i < walker.phases().size(); ++i) {
        const Phase& p = walker.phases()[i];
        uint64_t end = 0;
        double waited = 0, prepared = 0, streamed = 0, paged = 0, summed = 0, finished = 0;
        for (uint32_t b = 0; b < blocks; ++b) {
            const Stamp& s = stamps[i * blocks + b];
            end = std::max(end, s.ended);
            const auto mean = [&](uint64_t from, uint64_t to) {
                return static_cast<double>(static_cast<int64_t>(to - from)) * 1e-3 / blocks;
            };
            waited += mean(s.arrived, s.began);
            if (p.matrix.data == nullptr) continue;
            prepared += mean(s.began, s.prepared);
            streamed += mean(s.prepared, s.streamed);
            paged += mean(0, s.paged);
            summed += mean(0, s.summed);
            finished += mean(s.streamed, s.ended);
        }
        Sum& sum = sums[phase_name(p)];
        sum.us += static_cast<double>(end - before) * 1e-3;
        total += static_cast<double>(end - before) * 1e-3;
        sum.waited += waited;
        sum.prepared += prepared;
        sum.streamed += streamed;
        sum.paged += paged;
        sum.summed += summed;
        sum.finished += finished;
        sum.bytes += bytes_of(p, live);
        ++sum.phases;
        before = end;
    }
    json out = json::array();
    fmt::print("    {:<20} {:>6} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7} {:>6}\n",
               "phase", "times", "us", "us each", "waits", "prepares", "streams", "of pages",
               "of sums", "finishes", "GB/s", "share");
    for (const auto& [name, sum] : sums) {
        const double rate = sum.bytes / sum.us * 1e-3;
        fmt::print(
            "    {:<20} {:>6} {:>9.1f} {:>9.2f} {:>8.2f} {:>8.2f} {:>8.2f} {:>8.2f} {:>8.2f} "
            "{:>8.2f} {:>7.0f} {:>6}\n",
            name, sum.phases, sum.us, sum.us / sum.phases, sum.waited / sum.phases,
            sum.prepared / sum.phases, sum.streamed / sum.phases, sum.paged / sum.phases,
            sum.summed / sum.phases, sum.finished / sum.phases, rate,
            ceiling > 0 ? fmt::format("{:.0f} %", 100 * rate / ceiling) : "");
        out.push_back({{"phase", name},
                       {"times", sum.phases},
                       {"us", sum.us},
                       {"waited_us", sum.waited},
                       {"prepared_us", sum.prepared},
                       {"streamed_us", sum.streamed},
                       {"paged_us", sum.paged},
                       {"summed_us", sum.summed},
                       {"finished_us", sum.finished},
                       {"bytes", sum.bytes},
                       {"gb_per_s", rate}});
    }
    fmt::print("    {:<20} {:>6} {:>9.1f}\n", "all", "", total);
    return out;
}

double weight_bytes(const Walker& walker, double live) {
    double bytes = 0;
    for (const Phase& p : walker.phases()) bytes += bytes_of(p, live);
    return bytes;
}

struct Subject {
    std::string name;
    DeviceWeights target;
    std::unique_ptr<DeviceWeights> drafter;
    bool random;
};

Subject random_subject(const Arguments& a) {
    auto model = published_model(a.shape);
    if (!model) fail("--shape {}: not known", a.shape);
    if (a.layers > 0) {
        Shape& s = model->shape;
        s.layers = a.layers;
        s.is_sliding.resize(a.layers);
        s.is_moe.resize(a.layers);
        // Taps are layers, all different.
        if (model->drafter && a.layers < model->drafter->taps.size()) model->drafter.reset();
        if (model->drafter)
            for (uint32_t i = 0; i < model->drafter->taps.size(); ++i) model->drafter->taps[i] = i;
    }
    Subject subject{fmt::format("{}, one rank of {}, random weights", a.shape, a.ranks),
                    random_weights(model->shape, a.ranks, model->shape.experts, 1), nullptr, true};
    if (model->drafter)
        subject.drafter =
            std::make_unique<DeviceWeights>(random_drafter(*model->drafter, subject.target, 2));
    return subject;
}

Subject folder_subject(const Arguments& a) {
    const std::filesystem::path folder = a.model;
    const Checkpoint checkpoint = open_checkpoint(folder);
    const Shape shape = parse_shape(checkpoint.config, a.model);
    const Weights weights = bind(checkpoint, shape);
    PackOptions pack;
    pack.threads = available_threads();
    const PackedWeights packed = pack_weights(weights, pack);
    Subject subject{a.model, upload(packed, 0), nullptr, false};
    if (exists(folder / "dflash")) {
        const Checkpoint files = open_checkpoint(folder / "dflash");
        const DrafterShape d = parse_drafter_shape(files.config, shape, a.model);
        const MappedFile mask(folder / "dflash" / "mask_embedding.pt");
        const DrafterWeights bound =
            bind_drafter(files, d, parse_mask_embedding(mask.bytes(), "mask_embedding.pt"));
        subject.drafter = std::make_unique<DeviceWeights>(
            upload_drafter(pack_drafter(bound, packed, pack), subject.target, 0));
    }
    return subject;
}

json measure_target(const Subject& subject, const Arguments& a, uint32_t rows, uint32_t wanted,
                    cudaStream_t stream) {
    const Shape& s = subject.target.shape;
    const uint32_t moe = static_cast<uint32_t>(std::ranges::count(s.is_moe, true));
    if (subject.random && wanted > 0) want_experts(subject.target, candidates_for(wanted, s, rows));
    json result = {{"rows", rows}};
    std::vector<float> logits[2];
    for (const Path path : {Path::graph, Path::persistent}) {
        const bool graph = path == Path::graph;
        Options options{.path = path, .context = a.context, .loop_back = subject.target.ranks > 1};
        const Program program = target_program(subject.target, a.context, subject.drafter.get());
        Walker walker(program, subject.target, options, stream);
        const GpuCache cache(walker.cache());
        check_device(fill_bf16(cache.data(), cache.bytes() / 2, 1.0f, 3), "filling a cache");
        const Step step = step_of(rows, a.context, cache, s);
        const Spread ms = time_of(walker, step, a.repeats, stream);
        logits[graph ? 0 : 1] = logits_of(walker, rows);
        const double live = moe > 0 ? 1.0 * walker.live_experts() / moe : 0;
        const double bytes = weight_bytes(walker, live), rate = bytes / ms.median * 1e-6;
        fmt::print(
            "  {} rows, {:.1f} experts a layer, {:<10} {:8.3f} ms ({:.3f} to {:.3f}), {:.2f} GB, "
            "{:.0f} GB/s{}, "
            "hash {:016x}\n",
            rows, live, graph ? "graph" : "persistent", ms.median, ms.low, ms.high, bytes * 1e-9,
            rate, a.ceiling > 0 ? fmt::format(" ({:.0f} %)", 100 * rate / a.ceiling) : "",
            hash_of(logits[graph ? 0 : 1]));
        json& at = result[graph ? "graph" : "persistent"];
        at = {{"ms", to_json(ms)},
              {"experts", live},
              {"bytes", bytes},
              {"gb_per_s", rate},
              {"ring_pages", walker.ring_pages()},
              {"hash", fmt::format("{:016x}", hash_of(logits[graph ? 0 : 1]))}};
        if (graph) continue;
        options.stamps = true;
        options.kernel = &kWatchedWalk;
        Walker stamped(program, subject.target, options, stream);
        for (uint32_t i = 0; i < 3; ++i) {
            stamped.launch(step);
            stamped.finish();
        }
        at["phases"] = by_op(stamped, live, a.ceiling);
        if (!a.trace.empty()) write_trace(a.trace, stamped.phases(), stamped.stamps());
    }
    result["equal"] = logits[0] == logits[1];
    if (logits[0] != logits[1]) fmt::print("  the two paths DIFFER\n");
    return result;
}

json measure_drafter(const Subject& subject, const Arguments& a, cudaStream_t stream) {
    const DeviceWeights& drafter = *subject.drafter;
    const Shape& s = subject.target.shape;
    const DeviceMemory taps(uint64_t{kRowsMax} * drafter.drafter->taps.size() * s.hidden * 2);
    check_device(fill_bf16(taps.data(), taps.bytes() / 2, 1.0f, 4), "filling taps");
    json result;
    std::vector<float> logits[2];
    for (const Path path : {Path::graph, Path::persistent}) {
        const bool graph = path == Path::graph;
        Options options{.path = path, .context = a.context, .loop_back = drafter.ranks > 1};
        const Program program = block_program(drafter, a.context);
        Walker walker(program, drafter, options, stream);
        const GpuCache cache(walker.cache());
        check_device(fill_bf16(cache.data(), cache.bytes() / 2, 1.0f, 5), "filling a cache");
        Step step = step_of(drafter.drafter->block, a.context, cache, s);
        step.context_rows = kRowsMax - 1;
        step.context_position = step.run[0].position - step.context_rows;
        for (uint32_t i = 0; i < step.context_rows; ++i)
            step.context_taps[i] = reinterpret_cast<const uint16_t*>(taps.data()) +
                                   uint64_t{i} * drafter.drafter->taps.size() * s.hidden;
        const Spread ms = time_of(walker, step, a.repeats, stream);
        logits[graph ? 0 : 1] = logits_of(walker, step.rows);
        const double bytes = weight_bytes(walker, 0), rate = bytes / ms.median * 1e-6;
        fmt::print(
            "  drafted block, {:<10} {:8.3f} ms ({:.3f} to {:.3f}), {:.2f} GB, {:.0f} GB/s{}, hash "
            "{:016x}\n",
            graph ? "graph" : "persistent", ms.median, ms.low, ms.high, bytes * 1e-9, rate,
            a.ceiling > 0 ? fmt::format(" ({:.0f} %)", 100 * rate / a.ceiling) : "",
            hash_of(logits[graph ? 0 : 1]));
        json& at = result[graph ? "graph" : "persistent"];
        at = {{"ms", to_json(ms)}, {"bytes", bytes}, {"gb_per_s", rate}};
        if (graph) continue;
        options.stamps = true;
        options.kernel = &kWatchedWalk;
        Walker stamped(program, drafter, options, stream);
        for (uint32_t i = 0; i < 3; ++i) {
            stamped.launch(step);
            stamped.finish();
        }
        at["phases"] = by_op(stamped, 0, a.ceiling);
    }
    result["equal"] = logits[0] == logits[1];
    if (logits[0] != logits[1]) fmt::print("  the two paths DIFFER\n");
    return result;
}

// Rounds in one launch: a block of seven drafts and the step that verifies all of them. Random
// weights agree to next to nothing, so a round has one token; what it takes does not depend on
// that.
json measure_rounds(const Subject& subject, const Arguments& a, uint32_t wanted,
                    cudaStream_t stream) {
    const Shape& s = subject.target.shape;
    const DrafterShape& d = *subject.drafter->drafter;
    const uint32_t moe = static_cast<uint32_t>(std::ranges::count(s.is_moe, true));
    if (subject.random && wanted > 0)
        want_experts(subject.target, candidates_for(wanted, s, kRowsMax));
    const Options options{.context = a.context, .loop_back = subject.target.ranks > 1};
    Walker target(target_program(subject.target, a.context, subject.drafter.get()), subject.target,
                  options, stream);
    Walker block(block_program(*subject.drafter, a.context), *subject.drafter, options, stream);
    const GpuCache cache(target.cache()), draft_cache(block.cache());
    check_device(fill_bf16(cache.data(), cache.bytes() / 2, 1.0f, 3), "filling a cache");
    check_device(fill_bf16(draft_cache.data(), draft_cache.bytes() / 2, 1.0f, 5),
                 "filling a cache");
    RoundsInput input{};
    input.tap_columns = static_cast<uint32_t>(d.taps.size()) * s.hidden;
    input.taps_ring = taps_ring(d);
    const DeviceMemory taps(uint64_t{input.taps_ring} * input.tap_columns * 2);
    check_device(fill_bf16(taps.data(), taps.bytes() / 2, 1.0f, 4), "filling taps");
    input.cache = cache.data();
    input.draft_cache = draft_cache.data();
    input.taps = reinterpret_cast<uint16_t*>(taps.data());
    input.block = d.block;
    input.ask.drafts = d.block - 1;
    input.ask.context = a.context;
    input.ask.tokens_max = 48;
    const uint32_t length = a.context - input.ask.tokens_max - 2 * kRowsMax;
    input.from = {17, length, length - 1, 0};

    RoundsMachine rounds(target, &block, stream);
    std::vector<double> drafts, verifies, both;
    uint64_t hash = 0xcbf29ce484222325u, tokens = 0;
    double live = 0;
    for (uint32_t run = 0; run < 3; ++run) {
        rounds.start(input);
        while (const std::optional<Round> round = rounds.next()) {
            for (uint32_t i = 0; run == 0 && i < round->count; ++i)
                hash = (hash ^ round->tokens[i]) * 0x100000001b3u;
            if (run == 0) continue;  // to warm up
            tokens += round->count;
            drafts.push_back(round->draft_ns * 1e-6);
            verifies.push_back(round->verify_ns * 1e-6);
            both.push_back(drafts.back() + verifies.back());
            live = moe > 0 ? 1.0 * round->live_experts / moe : 0;
        }
    }
    const Spread draft = spread_of(drafts), verify = spread_of(verifies), all = spread_of(both);
    fmt::print(
        "  rounds, {:.1f} experts a layer: {:.3f} ms ({:.3f} to {:.3f}) each, draft {:.3f} and "
        "verify {:.3f}, {:.2f} tokens a round, hash {:016x}\n",
        live, all.median, all.low, all.high, draft.median, verify.median,
        static_cast<double>(tokens) / static_cast<double>(both.size()), hash);
    return {{"experts", live},
            {"ms", to_json(all)},
            {"draft_ms", to_json(draft)},
            {"verify_ms", to_json(verify)},
            {"rounds", both.size()},
            {"tokens", tokens},
            {"hash", fmt::format("{:016x}", hash)}};
}

json measure(const Arguments& a) {
    const Card card = find_card();
    cudaStream_t stream;
    check_device(cudaStreamCreate(&stream), "making a stream");
    const Subject subject = a.model.empty() ? random_subject(a) : folder_subject(a);
    fmt::print("{}, {:.2f} GB of weights on one {} ({} SMs)\n", subject.name,
               static_cast<double>(subject.target.bytes()) * 1e-9, card.name, card.multiprocessors);
    json out = {{"card", card.name},
                {"subject", subject.name},
                {"weights_bytes", subject.target.bytes()},
                {"context", a.context},
                {"ceiling_gb_per_s", a.ceiling},
                {"steps", json::array()}};
    for (const uint32_t rows : a.rows)
        for (const uint32_t experts : subject.random ? a.experts : std::vector<uint32_t>{0})
            out["steps"].push_back(measure_target(subject, a, rows, experts, stream));
    if (subject.drafter) {
        out["drafter"] = measure_drafter(subject, a, stream);
        for (const uint32_t experts : subject.random ? a.experts : std::vector<uint32_t>{0})
            out["rounds"].push_back(measure_rounds(subject, a, experts, stream));
    }
    cudaStreamDestroy(stream);
    return out;
}

}  // namespace
}  // namespace tessera::gpu

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what was measured before an abort is not lost
    tessera::gpu::Arguments a;
    CLI::App app("Whole steps on one GPU: gpu_steps --ceiling 3158 --json steps.json");
    app.add_option("--shape", a.shape, "a published model, with random weights: mimo-v2.5-pro");
    app.add_option("--model", a.model, "a folder, instead of random weights");
    app.add_option("--ranks", a.ranks, "of which one is measured, with random weights")
        ->check(CLI::IsMember({1, 2, 4, 8}));
    app.add_option("--context", a.context, "positions of a sequence; the step is at its end")
        ->check(CLI::Range(256, 1 << 20));
    app.add_option("--layers", a.layers, "instead of all of the shape's");
    app.add_option("--experts", a.experts, "distinct experts a layer, about")->delimiter(',');
    app.add_option("--rows", a.rows, "of a step")->delimiter(',')->check(CLI::Range(1, 8));
    app.add_option("--repeats", a.repeats)->check(CLI::Range(1, 1000));
    app.add_option("--ceiling", a.ceiling,
                   "GB/s that this card reads, as ground found it: figures become shares");
    app.add_option("--trace", a.trace,
                   "the last step of the target, phase by phase on every block, for "
                   "ui.perfetto.dev");
    app.add_option("--json", a.out, "where all figures go");
    CLI11_PARSE(app, argc, argv);
    if (!a.model.empty()) a.ranks = 1;
    try {
        const auto result = measure(a);
        if (!a.out.empty()) std::ofstream(a.out) << result.dump(1) << '\n';
        return 0;
    } catch (const std::exception& error) {
        fmt::print(stderr, "{}\n", error.what());
        return 1;
    }
}
