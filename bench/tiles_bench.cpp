// Matrix kernels alone, on weights that fit a cache: what arithmetic allows before memory does.
// Counters: bytes of packed weights a second, and multiply-adds a second.
#include <vector>

#include <benchmark/benchmark.h>

#include "tiles/kernels.h"

namespace tessera {
namespace {

constexpr uint32_t kColumns = 2048, kUnits = 32;

struct Case {
    std::vector<std::byte> weights;
    std::vector<float> activations;
    std::vector<Int16Block> int16;
    std::vector<Int8Block> int8;
    std::vector<const float*> rows;
    std::vector<const Int16Block*> int16_rows;
    std::vector<const Int8Block*> int8_rows;
    std::vector<float> out;

    Case(Format format, uint32_t count) {
        const uint32_t panels = kColumns / kPanelColumns;
        weights.resize(uint64_t{kUnits} * panels * panel_bytes(format));
        for (size_t i = 0; i < weights.size(); ++i)
            weights[i] = static_cast<std::byte>(i * 37 % 120);  // any finite number
        activations.resize(size_t{count} * kColumns);
        for (size_t i = 0; i < activations.size(); ++i)
            activations[i] = static_cast<float>(i % 17) - 8.0f;
        int16.resize(size_t{count} * kColumns / kMxBlock);
        int8.resize(size_t{count} * kColumns / kMxBlock);
        for (uint32_t row = 0; row < count; ++row) {
            rows.push_back(&activations[size_t{row} * kColumns]);
            int16_rows.push_back(&int16[size_t{row} * kColumns / kMxBlock]);
            int8_rows.push_back(&int8[size_t{row} * kColumns / kMxBlock]);
        }
        out.resize(size_t{count} * kUnits * kUnitRows);
    }
};

void count(benchmark::State& state, const Case& made, uint32_t rows) {
    const auto times = static_cast<double>(state.iterations());
    state.counters["weights"] = benchmark::Counter(times * static_cast<double>(made.weights.size()),
                                                   benchmark::Counter::kIsRate);
    state.counters["mul-adds"] = benchmark::Counter(times * rows * kUnits * kUnitRows * kColumns,
                                                    benchmark::Counter::kIsRate);
}

void multiply(benchmark::State& state, const Kernels* kernels, Format format) {
    const auto rows = static_cast<uint32_t>(state.range(0));
    Case made(format, rows);
    for (auto _ : state) {
        kernels->multiply(format, made.weights.data(), kUnits, kColumns / kPanelColumns,
                          {made.rows.data(), rows}, made.out.data(), kUnits * kUnitRows);
        benchmark::ClobberMemory();
    }
    count(state, made, rows);
}

void multiply_int16(benchmark::State& state, const Kernels* kernels) {
    const auto rows = static_cast<uint32_t>(state.range(0));
    Case made(Format::mxfp4, rows);
    for (auto _ : state) {
        kernels->multiply_int16(made.weights.data(), kUnits, kColumns / kPanelColumns,
                                {made.int16_rows.data(), rows}, made.out.data(),
                                kUnits * kUnitRows);
        benchmark::ClobberMemory();
    }
    count(state, made, rows);
}

void multiply_int8(benchmark::State& state, const Kernels* kernels) {
    const auto rows = static_cast<uint32_t>(state.range(0));
    Case made(Format::mxfp4, rows);
    for (auto _ : state) {
        kernels->multiply_int8(made.weights.data(), kUnits, kColumns / kPanelColumns,
                               {made.int8_rows.data(), rows}, made.out.data(), kUnits * kUnitRows);
        benchmark::ClobberMemory();
    }
    count(state, made, rows);
}

void add_all() {
    for (const Isa isa : kIsas) {
        const Kernels* const kernels = find_kernels(isa);
        if (kernels == nullptr) continue;
        const std::string at = std::string(isa_name(isa)) + "/";
        for (const auto& [format, name] :
             {std::pair{Format::fp8, "fp8"}, {Format::bf16, "bf16"}, {Format::f32, "f32"}}) {
            benchmark::RegisterBenchmark((at + name).c_str(), multiply, kernels, format)
                ->Arg(1)
                ->Arg(4)
                ->Arg(8);
        }
        benchmark::RegisterBenchmark((at + "mxfp4_int16").c_str(), multiply_int16, kernels)
            ->Arg(1)
            ->Arg(4)
            ->Arg(8);
        benchmark::RegisterBenchmark((at + "mxfp4_int8").c_str(), multiply_int8, kernels)
            ->Arg(1)
            ->Arg(4)
            ->Arg(8);
    }
}

[[maybe_unused]] const bool kAdded = (add_all(), true);

}  // namespace
}  // namespace tessera
