// The host's side of the emulated card. Work of a stream is done when somebody asks for it: a query
// lets the card work for a while, as it would have meanwhile, and other streams' copies come
// between the turns of a kernel under way. So a host that reads too early reads what was there
// before.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "gpu/emulated/card.h"
#include "gpu/emulated/memory.h"
#include "gpu/emulated/threads.h"

namespace emulated {
namespace {

constexpr uint64_t kTurnsOfAQuery = 20'000;  // a millisecond or so
constexpr size_t kFence = 256;               // bytes around an allocation, which nobody may write
constexpr unsigned char kFresh = 0xff, kFenced = 0xa5;

// Part of a stream: what is done at once, or a launch.
struct Work {
    std::function<void()> at_once;
    std::optional<Launch> launch;
};

}  // namespace
}  // namespace emulated

struct CUgraph_st {
    std::vector<emulated::Work> works;
};

struct CUstream_st {
    std::deque<emulated::Work> queue;
    bool blocking = true;  // for what is on the default stream
    std::unique_ptr<CUgraph_st> captured;
};

namespace emulated {
namespace {

class Card {
  public:
    Settings settings;

    static Card& one() {
        static Card& card = *new Card;
        return card;
    }

    cudaError_t error() const { return error_; }
    uint64_t used() const { return used_; }

    CUstream_st* make_stream(unsigned flags) {
        streams_.push_back(std::make_unique<CUstream_st>());
        streams_.back()->blocking = flags == cudaStreamDefault;
        return streams_.back().get();
    }
    void end_stream(CUstream_st* stream) {
        finish(*stream);
        std::erase_if(streams_, [&](const auto& one) { return one.get() == stream; });
    }

    // Null: the default stream, which waits for the others and is waited for.
    cudaError_t add(CUstream_st* stream, Work work) {
        if (error_ != cudaSuccess) return error_;
        if (stream == nullptr) {
            for (const auto& one : streams_)
                if (one->blocking) finish(*one);
            default_.queue.push_back(std::move(work));
            return finish(default_);
        }
        if (stream->captured != nullptr) {
            stream->captured->works.push_back(std::move(work));
        } else {
            stream->queue.push_back(std::move(work));
        }
        return cudaSuccess;
    }

    cudaError_t finish(CUstream_st& stream) {
        while (error_ == cudaSuccess && !stream.queue.empty()) work(~uint64_t{0} >> 1, &stream);
        return error_;
    }
    cudaError_t finish_all() {
        for (const auto& stream : streams_) finish(*stream);
        return finish(default_);
    }
    cudaError_t query(CUstream_st& stream) {
        work(kTurnsOfAQuery, nullptr);
        if (error_ != cudaSuccess) return error_;
        return stream.queue.empty() ? cudaSuccess : cudaErrorNotReady;
    }

    void* allocate(size_t bytes) {
        if (bytes + used_ > settings.memory_bytes) return nullptr;
        const size_t padded = (bytes + kFence - 1) / kFence * kFence;
        auto* const memory =
            static_cast<std::byte*>(std::aligned_alloc(kFence, padded + 2 * kFence));
        if (memory == nullptr) return nullptr;
        std::memset(memory, kFenced, padded + 2 * kFence);
        std::memset(memory + kFence, kFresh, bytes);
        allocations_.emplace(memory + kFence, bytes);
        used_ += bytes;
        return memory + kFence;
    }

    // A write beyond an allocation ends the program.
    void release(void* memory) {
        if (memory == nullptr) return;
        const auto found = allocations_.find(static_cast<std::byte*>(memory));
        if (found == allocations_.end()) give_up("frees what it did not allocate");
        const auto [begin, bytes] = *found;
        const size_t padded = (bytes + kFence - 1) / kFence * kFence;
        const auto fenced = [](std::byte b) { return b == std::byte{kFenced}; };
        if (!std::all_of(begin - kFence, begin, fenced) ||
            !std::all_of(begin + bytes, begin + padded + kFence, fenced))
            give_up("memory beside an allocation was written");
        used_ -= bytes;
        allocations_.erase(found);
        std::free(begin - kFence);
    }

    bool has(const void* at, uint64_t bytes) const {
        const auto* const begin = static_cast<const std::byte*>(at);
        auto found = allocations_.upper_bound(const_cast<std::byte*>(begin));
        if (found == allocations_.begin()) return false;
        --found;
        return begin + bytes <= found->first + found->second;
    }

    cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                       std::function<void()> thread) {
        Launch launch{std::move(thread), config.gridDim.x, config.blockDim.x,
                      static_cast<uint32_t>(config.dynamicSmemBytes), false};
        for (unsigned i = 0; i < config.numAttrs; ++i)
            launch.cooperative |= config.attrs[i].id == cudaLaunchAttributeCooperative &&
                                  config.attrs[i].val.cooperative != 0;
        if (launch.blocks == 0 || launch.threads == 0 || launch.threads > 1024)
            return cudaErrorInvalidValue;
        constexpr uint32_t kWithoutAsking = 48 * 1024;
        const auto allowed = allowed_.find(kernel);
        if (launch.shared_bytes > (allowed == allowed_.end() ? kWithoutAsking : allowed->second))
            return cudaErrorInvalidValue;
        if (launch.cooperative && launch.blocks > settings.multiprocessors)
            return cudaErrorCooperativeLaunchTooLarge;
        return add(config.stream, {nullptr, std::move(launch)});
    }

    cudaError_t allow(const void* kernel, int bytes) {
        if (bytes < 0 || static_cast<uint32_t>(bytes) > settings.shared_bytes)
            return cudaErrorInvalidValue;
        allowed_[kernel] = static_cast<uint32_t>(bytes);
        return cudaSuccess;
    }

  private:
    [[noreturn]] static void give_up(const char* why) {
        fmt::print(stderr, "emulated card: {}\n", why);
        std::abort();
    }

    // A kernel under way goes on, or one begins: that of `wanted` first, if it is given.
    void work(uint64_t turns, CUstream_st* wanted) {
        for (const auto& stream : streams_) begin_what_is_first(*stream);
        begin_what_is_first(default_);
        if (!running_) {
            CUstream_st* next = wanted;
            for (const auto& stream : streams_)
                if (next == nullptr && !stream->queue.empty()) next = stream.get();
            if (next == nullptr || next->queue.empty()) return;
            running_on_ = next;
            running_.emplace(*next->queue.front().launch, settings.multiprocessors, settings.seed);
        }
        running_->advance(turns);
        if (running_->failed()) error_ = cudaErrorLaunchFailure;
        if (!running_->over()) return;
        running_.reset();
        running_on_->queue.pop_front();
    }

    static void begin_what_is_first(CUstream_st& stream) {
        while (!stream.queue.empty() && stream.queue.front().at_once) {
            stream.queue.front().at_once();
            stream.queue.pop_front();
        }
    }

    std::vector<std::unique_ptr<CUstream_st>> streams_;
    CUstream_st default_;
    std::optional<Grid> running_;
    CUstream_st* running_on_ = nullptr;
    std::map<std::byte*, size_t> allocations_;
    std::map<const void*, uint32_t> allowed_;
    uint64_t used_ = 0;
    cudaError_t error_ = cudaSuccess;  // stays, as a card's does
};

Card& card() {
    return Card::one();
}

}  // namespace

Settings& settings() {
    return card().settings;
}

bool is_device_memory(const void* at, uint64_t bytes) {
    return card().has(at, bytes);
}

cudaError_t enqueue(const cudaLaunchConfig_t& config, const void* kernel,
                    std::function<void()> thread) {
    return card().launch(config, kernel, std::move(thread));
}

cudaError_t allow_shared(const void* kernel, int bytes) {
    return card().allow(kernel, bytes);
}

}  // namespace emulated

using emulated::card;

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorNoDevice:
            return "no CUDA-capable device is detected";
        case cudaErrorNotReady:
            return "device not ready";
        case cudaErrorLaunchFailure:
            return "unspecified launch failure";
        case cudaErrorCooperativeLaunchTooLarge:
            return "too many blocks in cooperative launch";
    }
    return "unknown error";
}

cudaError_t cudaGetLastError() {
    return card().error();
}

// ---- The device ---------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    *properties = {};
    std::snprintf(properties->name, sizeof(properties->name), "emulated card");
    properties->major = 9;
    properties->multiProcessorCount = static_cast<int>(card().settings.multiprocessors);
    properties->sharedMemPerBlockOptin = card().settings.shared_bytes;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 9;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    *total = card().settings.memory_bytes;
    *free = *total - card().used();
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
    return card().finish_all();
}

// ---- Streams and graphs -------------------------------------------------------------------------

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    *stream = card().make_stream(flags);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    card().end_stream(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    return card().query(*stream);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return card().finish(*stream);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    stream->captured = std::make_unique<CUgraph_st>();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    *graph = stream->captured.release();
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    *made = new CUgraph_st(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    for (const emulated::Work& work : graph->works)
        if (const cudaError_t error = card().add(stream, work); error != cudaSuccess) return error;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete graph;
    return cudaSuccess;
}

// ---- Memory -------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** memory, size_t bytes) {
    *memory = card().allocate(bytes);
    return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
// Waits for the card, as CUDA's does.
cudaError_t cudaFree(void* memory) {
    const cudaError_t error = card().finish_all();
    card().release(memory);
    return error;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
    *memory = std::aligned_alloc(
        emulated::kFence, (bytes + emulated::kFence - 1) / emulated::kFence * emulated::kFence);
    return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
    const cudaError_t error = card().finish_all();
    std::free(memory);
    return error;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
    return card().add(stream, {[=] { std::memcpy(to, from, bytes); }, {}});
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
    return card().add(stream, {[=] { std::memset(to, value, bytes); }, {}});
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
    return cudaMemsetAsync(to, value, bytes, nullptr);
}
