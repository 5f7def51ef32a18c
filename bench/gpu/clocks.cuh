// What the card says of itself, and what its clocks do.
#pragma once

#include "card.cuh"

namespace tessera::ground {

struct ClockTask {
    uint64_t* ns;       // elapsed
    uint64_t* cycles;   // elapsed
    uint64_t* step_ns;  // the smallest step of globaltimer that was seen
};

// One thread watches both clocks for a while.
static __global__ void watch_clocks(const ClockTask task) {
    constexpr uint64_t kWatchedNs = 5'000'000;
    const uint64_t began_ns = gpu::now_ns();
    const auto began = static_cast<uint64_t>(clock64());
    uint64_t last = began_ns;
    uint64_t step = kWatchedNs;
    while (last - began_ns < kWatchedNs) {
        const uint64_t now = gpu::now_ns();
        if (now != last) step = min(step, now - last);
        last = now;
    }
    *task.ns = last - began_ns;
    *task.cycles = static_cast<uint64_t>(clock64()) - began;
    *task.step_ns = step;
}

inline void measure_clocks(const Card& card, const Reporter& reporter) {
    const cudaDeviceProp& p = card.properties();
    int driver = 0;
    int runtime = 0;
    MUST(cudaDriverGetVersion(&driver));
    MUST(cudaRuntimeGetVersion(&runtime));
    reporter.say(Fact{"card", p.name});
    reporter.say(
        Fact{"compute capability", std::to_string(p.major) + "." + std::to_string(p.minor)});
    reporter.say(Fact{"multiprocessors", std::to_string(p.multiProcessorCount)});
    reporter.say(Fact{"L2 bytes", std::to_string(p.l2CacheSize)});
    reporter.say(Fact{"memory bytes", std::to_string(p.totalGlobalMem)});
    reporter.say(Fact{"shared bytes a block", std::to_string(p.sharedMemPerBlockOptin)});
    reporter.say(
        Fact{"CUDA driver and runtime", std::to_string(driver) + " " + std::to_string(runtime)});

    const Array<uint64_t> seen(3);
    std::vector<double> mhz;
    std::vector<double> step_ns;
    for (uint32_t repetition = 0; repetition < kRepetitions; ++repetition) {
        card.launch(watch_clocks, {1, 1, 0},
                    ClockTask{seen.data(), seen.data() + 1, seen.data() + 2});
        card.finish();
        const std::vector<uint64_t> clocks = seen.host();
        must_hold(clocks[0] > 0 && clocks[1] > 0, "a clock stands still");
        mhz.push_back(static_cast<double>(clocks[1]) / static_cast<double>(clocks[0]) * 1e3);
        step_ns.push_back(static_cast<double>(clocks[2]));
    }
    reporter.say(Figure{"SM clock while one thread spins", "MHz", spread(mhz), {}});
    reporter.say(Figure{"step of globaltimer", "ns", spread(step_ns), {}});
}

}  // namespace tessera::ground
