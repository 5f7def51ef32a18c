#include "runtime/cpu.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include <fmt/format.h>
#include <pthread.h>
#include <sched.h>

#include "base/check.h"
#include "plan/check.h"

namespace tessera {
namespace {

// About 20 and 50 microseconds of pausing: longer than a tile's wait should be, shorter than what
// waking a parked thread costs, twice.
constexpr uint32_t kSpinsBeforeYield = 2000;
constexpr uint32_t kSpinsBeforePark = 5000;
// A wait of a minute is a bug in a program that was proved to end: say who waits.
constexpr uint64_t kYieldsMax = 200'000'000;

// Programs: one for each number of rows that decoding verifies, one for prefill.
constexpr uint32_t kDecodeRowsMax = 8;

void pin_to(pthread_t thread, int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    pthread_setaffinity_np(thread, sizeof set, &set);  // advice: a refusal changes nothing
}

std::vector<int> allowed_cores() {
    cpu_set_t set;
    CPU_ZERO(&set);
    std::vector<int> cores;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
    for (int core = 0; core < CPU_SETSIZE; ++core)
        if (CPU_ISSET(core, &set)) cores.push_back(core);
    return cores;
}

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

void wait(const Event& event, uint64_t count) {
    for (uint32_t spin = 0; spin < kSpinsBeforeYield; ++spin) {
        if (has(event, count)) return;
        pause_briefly();
    }
    for (uint64_t yields = 0; !has(event, count); ++yields) {
        CHECK(yields < kYieldsMax);  // a signal that the program promised has not come
        sched_yield();
    }
}

CpuMachine::Line::Line(Program made, const PackedWeights& weights, const Kernels& kernels)
    : program(std::move(made)),
      events(std::make_unique<Event[]>(program.signals.size())),
      executor(program, weights, kernels) {
    if (const auto fault = check(program)) {
        fmt::print(stderr, "{}\n", *fault);
        CHECK(!fault);
    }
    for (const std::vector<uint32_t>& queue : program.queues) {
        std::vector<Tile>& tiles = queues.emplace_back();
        for (const uint32_t index : queue) tiles.push_back(program.tiles[index]);
    }
}

CpuMachine::CpuMachine(const PackedWeights& weights, const CpuOptions& options)
    : weights_(weights), options_(options), walk_([this](uint32_t worker) { walk(worker); }) {
    const Kernels& kernels = options.kernels != nullptr ? *options.kernels : best_kernels();
    PlanRequest request;
    request.shape = weights.shape;
    request.ranks = options.ranks;
    request.workers = options.workers;
    request.context = options.context;
    request.int8_activations = options.int8_activations && weights.shape.quantization.mxfp4_experts;
    for (uint32_t rows = 1; rows <= kDecodeRowsMax + 1; ++rows) {
        request.rows = rows <= kDecodeRowsMax ? rows : kStepRowsMax;
        lines_.push_back(std::make_unique<Line>(plan(request), weights, kernels));
    }
    const uint32_t workers = options.ranks * options.workers;
    for (uint32_t worker = 0; worker < workers; ++worker)
        scratch_.push_back(std::make_unique<Scratch>(request));
    const std::vector<int> cores = allowed_cores();
    for (uint32_t worker = 1; worker < workers; ++worker) {
        workers_.emplace_back([this, worker] { serve(worker); });
        if (options.pin && cores.size() >= workers)
            pin_to(workers_.back().native_handle(), cores[worker]);
    }
}

CpuMachine::~CpuMachine() {
    stopping_ = true;
    signal(begun_);
    ++bell_;
    bell_.notify_all();
}

CpuMachine::Line& CpuMachine::line_for(uint32_t rows) {
    return *lines_[std::min(rows, kDecodeRowsMax + 1) - 1];
}

void CpuMachine::step(const StepInput& input) {
    CHECK(input.rows() > 0 && input.rows() <= kStepRowsMax);
    CHECK(input.positions.size() == input.rows() && input.caches.size() == input.rows());
    current_ = &line_for(input.rows());
    ++current_->times;
    current_->executor.begin(input);
    everyone(walk_);
}

void CpuMachine::everyone(const std::function<void(uint32_t worker)>& work) {
    work_ = &work;
    ++turns_;
    signal(begun_);
    ++bell_;
    bell_.notify_all();
    work(0);
    wait(ended_, turns_ * workers_.size());
}

double CpuMachine::read_bandwidth(double seconds) {
    using Clock = std::chrono::steady_clock;
    constexpr uint64_t kPiece = uint64_t{1} << 20;
    // Pieces of the arenas in turn, so that all workers read from everywhere, none twice a round.
    std::vector<std::span<const std::byte>> pieces;
    for (const PackedRank& rank : weights_.ranks) {
        for (uint64_t at = 0; at + kPiece <= rank.arena.bytes(); at += kPiece)
            pieces.push_back({rank.arena.data() + at, kPiece});
    }
    if (pieces.empty()) return 0;
    const size_t workers = scratch_.size();
    std::vector<uint64_t> read(workers);
    std::vector<uint64_t> kept(workers);  // the sums, so that no load is removed
    const auto begun = Clock::now();
    everyone([&](uint32_t worker) {
        for (size_t i = worker;; i += workers) {
            const std::span<const std::byte> piece = pieces[i % pieces.size()];
            uint64_t sums[8] = {};
            for (uint64_t at = 0; at < piece.size(); at += sizeof sums) {
                uint64_t words[8];
                std::memcpy(words, piece.data() + at, sizeof words);
                for (uint32_t k = 0; k < 8; ++k) sums[k] += words[k];
            }
            for (const uint64_t sum : sums) kept[worker] += sum;
            read[worker] += piece.size();
            const std::chrono::duration<double> spent = Clock::now() - begun;
            if (spent.count() >= seconds) return;
        }
    });
    const std::chrono::duration<double> spent = Clock::now() - begun;
    uint64_t total = 0;
    for (const uint64_t bytes : read) total += bytes;
    CHECK(kept.size() == workers);
    return static_cast<double>(total) / spent.count();
}

void CpuMachine::walk(uint32_t worker) {
    Line& line = *current_;
    Scratch& scratch = *scratch_[worker];
    Trace* const trace = trace_;
    uint64_t index = 0;
    for (const Tile& tile : line.queues[worker]) {
        if (options_.adversary != 0) dawdle(options_.adversary + line.times, worker, index++);
        const int64_t waited = trace != nullptr ? trace->now_ns() : 0;
        if (tile.wait != kNoEvent)
            wait(line.events[tile.wait],
                 (line.times - 1) * line.program.signals[tile.wait] + tile.count);
        const int64_t began = trace != nullptr ? trace->now_ns() : 0;
        line.executor.run(tile, scratch);
        if (trace != nullptr) trace->add(worker, {tile, waited, began, trace->now_ns()});
        if (tile.done != kNoEvent) signal(line.events[tile.done]);
    }
}

// A worker's life: the n-th turn begins when begun_ has n.
void CpuMachine::serve(uint32_t worker) {
    for (uint64_t turn = 1;; ++turn) {
        for (uint32_t spin = 0; !has(begun_, turn); ++spin) {
            if (spin < kSpinsBeforePark) {
                pause_briefly();
                continue;
            }
            const uint32_t heard = bell_.load();
            if (!has(begun_, turn)) bell_.wait(heard);
        }
        if (stopping_) return;
        (*work_)(worker);
        signal(ended_);
    }
}

void CpuMachine::logits(uint32_t row, std::span<float> out) const {
    CHECK(current_ != nullptr && out.size() == weights_.shape.vocab);
    for (uint32_t rank = 0; rank < options_.ranks; ++rank)
        std::ranges::copy(current_->executor.logits(rank, row),
                          out.begin() + weights_.ranks[rank].vocab.begin);
}

uint32_t CpuMachine::live_experts() const {
    uint32_t sum = 0;
    for (uint32_t layer = 0; layer < weights_.shape.layers; ++layer)
        sum += current_->executor.live_experts(layer);
    return sum;
}

}  // namespace tessera
