// The device's memory, streams and errors, owned. What can fail while loading throws Error; what
// fails in a step aborts, after saying which block waited for what.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <cuda_runtime_api.h>

#include "base/error.h"
#include "runtime/gpu/card.h"

namespace tessera::gpu {

// Throws Error with what the driver says.
inline void check_device(cudaError_t result, const char* what) {
    if (result != cudaSuccess) fail("GPU: {}: {}", what, cudaGetErrorString(result));
}

class DeviceMemory {
  public:
    DeviceMemory() = default;
    explicit DeviceMemory(uint64_t bytes) : bytes_(bytes) {
        if (bytes > 0 && cudaMalloc(&data_, bytes) != cudaSuccess) {
            size_t free = 0, total = 0;
            cudaMemGetInfo(&free, &total);
            fail(
                "GPU: needs {:.2f} GB more, but {:.2f} of {:.2f} GB are free; a smaller --context, "
                "or a "
                "card with more memory, would help",
                static_cast<double>(bytes) * 1e-9, static_cast<double>(free) * 1e-9,
                static_cast<double>(total) * 1e-9);
        }
    }
    DeviceMemory(DeviceMemory&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    DeviceMemory& operator=(DeviceMemory&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~DeviceMemory() { cudaFree(data_); }

    std::byte* data() const { return static_cast<std::byte*>(data_); }
    uint64_t bytes() const { return bytes_; }

    void clear() { check_device(cudaMemset(data_, 0, bytes_), "clearing memory"); }

  private:
    void* data_ = nullptr;
    uint64_t bytes_ = 0;
};

class Stream {
  public:
    explicit Stream(unsigned flags = cudaStreamDefault) {
        check_device(cudaStreamCreateWithFlags(&stream_, flags), "making a stream");
    }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream() { cudaStreamDestroy(stream_); }

    cudaStream_t get() const { return stream_; }

  private:
    cudaStream_t stream_ = nullptr;
};

// Host memory that the device reads and writes.
template <typename T>
class PinnedMemory {
  public:
    explicit PinnedMemory(size_t count) : count_(count) {
        void* memory = nullptr;
        check_device(cudaHostAlloc(&memory, count * sizeof(T), cudaHostAllocMapped),
                     "taking pinned memory");
        data_ = static_cast<T*>(memory);
        for (size_t i = 0; i < count; ++i) data_[i] = T{};
    }
    PinnedMemory(const PinnedMemory&) = delete;
    PinnedMemory& operator=(const PinnedMemory&) = delete;
    ~PinnedMemory() { cudaFreeHost(data_); }

    T* data() const { return data_; }
    std::span<T> all() const { return {data_, count_}; }

  private:
    T* data_ = nullptr;
    size_t count_;
};

}  // namespace tessera::gpu
