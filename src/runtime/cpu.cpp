#include "runtime/cpu.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include <fmt/format.h>
#include <sched.h>

#include "base/check.h"
#include "plan/check.h"

namespace tessera {
namespace {

// Loses a time that depends on (seed, worker, tile): what an unlucky scheduler would do.
void dawdle(uint64_t seed, uint32_t worker, uint64_t tile) {
    uint64_t z = seed + worker * 0x9e3779b97f4a7c15u + tile * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z ^= z >> 27;
    if (z % 16 == 0) {
        sched_yield();
    } else {
        for (uint64_t i = 0; i < z % 256; ++i) pause_briefly();
    }
}

}  // namespace

CpuProgram::CpuProgram(Program program, const PackedWeights& weights, const Kernels& kernels,
                       Extent extent)
    : program_(std::move(program)),
      events_(std::make_unique<Event[]>(program_.signals.size())),
      executor_(program_, weights, kernels) {
    const auto fault = extent == Extent::whole ? check(program_) : std::nullopt;
    if (fault) fmt::print(stderr, "{}\n", *fault);
    CHECK(!fault);
    for (const std::vector<uint32_t>& queue : program_.queues) {
        std::vector<Tile>& tiles = queues_.emplace_back();
        for (const uint32_t index : queue) tiles.push_back(program_.tiles[index]);
    }
}

void CpuProgram::walk(uint32_t worker, Scratch& scratch, Trace* trace, uint64_t adversary) {
    uint64_t index = 0;
    for (const Tile& tile : queues_[worker]) {
        if (adversary != 0) dawdle(adversary + times_, worker, index++);
        const int64_t waited = trace != nullptr ? trace->now_ns() : 0;
        if (tile.wait != kNoEvent)
            wait(events_[tile.wait], (times_ - 1) * program_.signals[tile.wait] + tile.count);
        const int64_t began = trace != nullptr ? trace->now_ns() : 0;
        executor_.run(tile, scratch);
        if (trace != nullptr) trace->add(worker, {tile, waited, began, trace->now_ns()});
        if (tile.done != kNoEvent) signal(events_[tile.done]);
    }
}

CpuMachine::CpuMachine(const PackedWeights& weights, const CpuOptions& options,
                       const PackedWeights* drafter)
    : weights_(weights),
      drafter_(drafter),
      options_(options),
      walk_([this](uint32_t worker) {
          Scratch& scratch = *(running_ == current_ ? scratch_ : draft_scratch_)[worker];
          running_->walk(worker, scratch, trace_, options_.adversary);
      }),
      workers_(options.ranks, options.workers, options.pin) {
    const Kernels& kernels = options.kernels != nullptr ? *options.kernels : best_kernels();
    PlanRequest request;
    request.shape = weights.shape;
    request.ranks = options.ranks;
    request.workers = options.workers;
    request.context = options.context;
    if (weights.shape.quantization.mxfp4_experts)
        request.blocks = options.int8_activations ? Blocks::int8 : Blocks::int16;
    if (drafter != nullptr) request.taps = drafter->drafter->taps;
    for (uint32_t rows = 1; rows <= kDecodeRowsMax + 1; ++rows) {
        request.rows = rows <= kDecodeRowsMax ? rows : kStepRowsMax;
        programs_.push_back(std::make_unique<CpuProgram>(plan(request), weights, kernels));
    }
    for (uint32_t worker = 0; worker < workers_.count(); ++worker)
        scratch_.push_back(std::make_unique<Scratch>(request));
    if (drafter == nullptr) return;

    const DrafterShape& shape = *drafter->drafter;
    request.shape = drafter->shape;
    request.blocks = Blocks::none;
    request.taps.clear();
    request.context = options.context + shape.block;  // a block may reach beyond the end
    request.draft = {.context_rows = kDecodeRowsMax,
                     .taps = static_cast<uint32_t>(shape.taps.size())};
    request.rows = shape.block;
    block_ = std::make_unique<CpuProgram>(plan(request), *drafter, kernels);
    request.draft->context_rows = kStepRowsMax;
    request.rows = 0;
    context_ = std::make_unique<CpuProgram>(plan(request), *drafter, kernels);
    request.rows = shape.block;  // scratch for either
    for (uint32_t worker = 0; worker < workers_.count(); ++worker)
        draft_scratch_.push_back(std::make_unique<Scratch>(request));
}

void CpuMachine::step(const StepInput& input) {
    CHECK(input.rows() > 0 && input.rows() <= kStepRowsMax);
    CHECK(input.positions.size() == input.rows() && input.caches.size() == input.rows());
    CHECK(input.taps.empty() || input.taps.size() == input.rows());
    current_ = programs_[std::min(input.rows(), kDecodeRowsMax + 1) - 1].get();
    run(*current_, input);
}

void CpuMachine::draft(const StepInput& input) {
    CHECK(drafter_ != nullptr);
    const uint32_t rows = input.rows(), context = input.context.rows();
    CHECK(rows == 0 ? context <= kStepRowsMax
                    : rows == drafter_->drafter->block && context <= kDecodeRowsMax);
    CHECK(input.positions.size() == rows && input.caches.size() == rows);
    run(rows == 0 ? *context_ : *block_, input);
}

void CpuMachine::run(CpuProgram& program, const StepInput& input) {
    running_ = &program;
    program.begin(input);
    workers_.everyone(walk_);
}

std::span<const float> CpuMachine::logits_of(const CpuProgram& program, uint32_t row,
                                             std::span<float> memory) {
    const uint32_t ranks = program.program().request.ranks;
    if (ranks == 1) return program.executor().logits(0, row);
    CHECK(memory.size() == program.program().request.shape.vocab);
    auto at = memory.begin();
    for (uint32_t rank = 0; rank < ranks; ++rank)
        at = std::ranges::copy(program.executor().logits(rank, row), at).out;
    return memory;
}

std::span<const float> CpuMachine::logits_at(uint32_t row, std::span<float> memory) const {
    CHECK(current_ != nullptr);
    return logits_of(*current_, row, memory);
}

void CpuMachine::logits(uint32_t row, std::span<float> out) const {
    const std::span<const float> found = logits_at(row, out);
    if (found.data() != out.data()) std::ranges::copy(found, out.begin());
}

std::span<const float> CpuMachine::draft_logits_at(uint32_t row, std::span<float> memory) const {
    CHECK(block_ != nullptr);
    return logits_of(*block_, row, memory);
}

uint32_t CpuMachine::live_experts() const {
    uint32_t sum = 0;
    for (uint32_t layer = 0; layer < weights_.shape.layers; ++layer)
        sum += current_->executor().live_experts(layer);
    return sum;
}

double CpuMachine::read_bandwidth(double seconds) {
    return tessera::read_bandwidth(workers_, weights_, seconds);
}

double read_bandwidth(Workers& workers, const PackedWeights& weights, double seconds) {
    using Clock = std::chrono::steady_clock;
    constexpr uint64_t kPiece = uint64_t{1} << 20;
    // Pieces of the arenas in turn, so that workers read from everywhere, none twice a round.
    std::vector<std::span<const std::byte>> pieces;
    for (const PackedRank& rank : weights.ranks) {
        for (uint64_t at = 0; at + kPiece <= rank.arena.bytes(); at += kPiece)
            pieces.push_back({rank.arena.data() + at, kPiece});
    }
    if (pieces.empty()) return 0;
    std::vector<uint64_t> read(workers.count());
    static std::atomic<uint64_t> kept;  // the sums: no load can be left out
    const auto begun = Clock::now();
    const auto spent = [&] { return std::chrono::duration<double>(Clock::now() - begun).count(); };
    workers.everyone([&](uint32_t worker) {
        for (size_t i = worker; spent() < seconds; i += read.size()) {
            const std::span<const std::byte> piece = pieces[i % pieces.size()];
            kept += best_kernels().read(piece.data(), piece.size());
            read[worker] += piece.size();
        }
    });
    const double took = spent();
    return static_cast<double>(std::accumulate(read.begin(), read.end(), uint64_t{0})) / took;
}

}  // namespace tessera
