// The card as every measurement uses it: checked calls, memory, launches, and the clock around
// them. Knows nothing of what is measured.
#pragma once

#include <functional>
#include <stdexcept>

#include <cuda_runtime.h>

#include "runtime/gpu/primitives.cuh"

#include "report.h"

namespace tessera::ground {

constexpr uint32_t kRepetitions = 11;
constexpr uint32_t kWarmUps = 2;
constexpr uint32_t kBlocksMax = 1024;

// A block that asks for this much shared memory has its SM to itself.
constexpr uint32_t kAloneBytes = 120 << 10;

// Keeps the card busy while the host asks for what is to be timed, so that the clock does not run
// while the card waits for the host.
static __global__ void busy() {
    constexpr uint64_t kBusyNs = 200'000;
    for (const uint64_t began = gpu::now_ns(); gpu::now_ns() - began < kBusyNs;) {
    }
}

inline void must(cudaError_t error, const char* call, const char* file, int line) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + call + ": " +
                             cudaGetErrorString(error));
}
#define MUST(call) ::tessera::ground::must((call), #call, __FILE__, __LINE__)

// A fact that a measurement's own result proves wrong.
inline void must_hold(bool fact, const std::string& what) {
    if (!fact) throw std::runtime_error(what);
}

// `count` elements in device memory.
template <class T>
class Array {
  public:
    explicit Array(size_t count) : count_(count) { MUST(cudaMalloc(&data_, count * sizeof(T))); }
    ~Array() { cudaFree(data_); }  // an error here was reported by whoever met it first
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;

    T* data() const { return data_; }
    void clear(cudaStream_t stream) const {
        MUST(cudaMemsetAsync(data_, 0, count_ * sizeof(T), stream));
    }
    std::vector<T> host() const {
        std::vector<T> copy(count_);
        MUST(cudaMemcpy(copy.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
        return copy;
    }

  private:
    T* data_ = nullptr;
    size_t count_;
};

struct Grid {
    uint32_t blocks;
    uint32_t threads;
    uint32_t shared_bytes;
    uint32_t cluster = 1;
};

class Card {
  public:
    Card() {
        MUST(cudaSetDevice(0));
        MUST(cudaGetDeviceProperties(&properties_, 0));
        MUST(cudaStreamCreate(&stream_));
        MUST(cudaEventCreate(&began_));
        MUST(cudaEventCreate(&ended_));
        MUST(cudaHostAlloc(&board_, kBlocksMax * sizeof(gpu::Distress), cudaHostAllocMapped));
        std::fill_n(board_, kBlocksMax, gpu::Distress{});
        MUST(cudaHostGetDevicePointer(&device_board_, board_, 0));
    }

    const cudaDeviceProp& properties() const { return properties_; }
    uint32_t sms() const { return static_cast<uint32_t>(properties_.multiProcessorCount); }
    cudaStream_t stream() const { return stream_; }
    gpu::Distress* board() const { return device_board_; }

    // Cooperative, so that blocks which wait for one another all run or none does. Clusters are
    // not: their caller asks how many fit.
    template <class Task>
    void launch(void (*kernel)(Task), const Grid& grid, const Task& task) const {
        must_hold(grid.blocks <= kBlocksMax, "more blocks than the board has entries");
        MUST(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(grid.shared_bytes)));
        cudaLaunchAttribute attribute = {};
        const cudaLaunchConfig_t config = this->config(grid, &attribute);
        MUST(cudaLaunchKernelEx(&config, kernel, task));
    }

    // Blocks of the largest grid of clusters that runs at once.
    template <class Task>
    uint32_t blocks_in_clusters(void (*kernel)(Task), Grid grid) const {
        MUST(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(grid.shared_bytes)));
        cudaLaunchAttribute attribute = {};
        const cudaLaunchConfig_t config = this->config(grid, &attribute);
        int clusters = 0;
        MUST(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
        return static_cast<uint32_t>(clusters) * grid.cluster;
    }

    // Waits for all work; an error comes with the notes of whoever waited in vain.
    void finish() const {
        const cudaError_t error = cudaStreamSynchronize(stream_);
        if (error == cudaSuccess) return;
        throw std::runtime_error(std::string(cudaGetErrorString(error)) + notes());
    }

    double milliseconds(const std::function<void()>& work) const {
        busy<<<1, 1, 0, stream_>>>();
        MUST(cudaGetLastError());
        MUST(cudaEventRecord(began_, stream_));
        work();
        MUST(cudaEventRecord(ended_, stream_));
        finish();
        float time = 0;
        MUST(cudaEventElapsedTime(&time, began_, ended_));
        return static_cast<double>(time);
    }

  private:
    cudaLaunchConfig_t config(const Grid& grid, cudaLaunchAttribute* attribute) const {
        if (grid.cluster > 1) {
            attribute->id = cudaLaunchAttributeClusterDimension;
            attribute->val.clusterDim = {grid.cluster, 1, 1};
        } else {
            attribute->id = cudaLaunchAttributeCooperative;
            attribute->val.cooperative = 1;
        }
        cudaLaunchConfig_t config = {};
        config.gridDim = grid.blocks;
        config.blockDim = grid.threads;
        config.dynamicSmemBytes = grid.shared_bytes;
        config.stream = stream_;
        config.attrs = attribute;
        config.numAttrs = 1;
        return config;
    }

    std::string notes() const {
        static const char* const kNames[] = {"nothing", "an event", "a full page", "an empty page"};
        std::string text;
        uint32_t waiting = 0;
        for (uint32_t block = 0; block < kBlocksMax; ++block) {
            const gpu::Distress& note = board_[block];
            if (note.awaited == gpu::Awaited::kNothing || waiting++ >= 4) continue;
            text += "; block " + std::to_string(block) + " thread " + std::to_string(note.thread) +
                    " waited for " + kNames[static_cast<uint32_t>(note.awaited)] + ", needed " +
                    std::to_string(note.needed) + ", saw " + std::to_string(note.seen);
        }
        return waiting > 4 ? text + "; " + std::to_string(waiting - 4) + " more blocks waited"
                           : text;
    }

    cudaDeviceProp properties_;
    cudaStream_t stream_;
    cudaEvent_t began_, ended_;
    gpu::Distress* board_;
    gpu::Distress* device_board_;
};

// Reports as it goes, so that what was measured before a failure is kept.
class Reporter {
  public:
    explicit Reporter(std::FILE* out) : out_(out) {}

    template <class Said>
    void say(const Said& said) const {
        std::fputs(line_of(said).c_str(), out_);
        std::fflush(out_);
    }

    // One measurement: its failure leaves the others alone, unless it took the context with it.
    template <class Measure>
    void attempt(const std::string& name, Measure&& measure) const {
        try {
            measure();
        } catch (const std::exception& error) {
            say(Failure{name, error.what()});
            cudaGetLastError();
            if (cudaDeviceSynchronize() != cudaSuccess) {
                throw std::runtime_error("the context is lost: what follows was not measured");
            }
        }
    }

  private:
    std::FILE* out_;
};

}  // namespace tessera::ground
