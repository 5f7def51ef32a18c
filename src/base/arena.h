// One block of zeroed memory for much data that lives as long: in large pages where the system has
// them, committed when first touched, so that asking for more than is used costs nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace tessera {

class Arena {
  public:
    static constexpr size_t kAlignment = 64;  // of what take() returns: a cache line

    Arena() = default;
    // Throws Error if the address space is not to be had. With a node (see base/topology.h) its
    // pages come from there, whoever touches them first.
    explicit Arena(uint64_t bytes, std::optional<uint32_t> node = std::nullopt);
    Arena(Arena&& other) noexcept;
    Arena& operator=(Arena&& other) noexcept;
    ~Arena();

    // The next `bytes` of it, which are there.
    std::byte* take(uint64_t bytes);

    std::byte* data() const { return data_; }
    uint64_t bytes() const { return bytes_; }

    // What take(bytes) uses up.
    static uint64_t taken(uint64_t bytes) {
        return (bytes + kAlignment - 1) / kAlignment * kAlignment;
    }

  private:
    std::byte* data_ = nullptr;
    uint64_t bytes_ = 0;
    uint64_t used_ = 0;
};

}  // namespace tessera
