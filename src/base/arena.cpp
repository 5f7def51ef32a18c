#include "base/arena.h"

#include <cerrno>
#include <system_error>
#include <utility>

#include <sys/mman.h>

#include "base/check.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/topology.h"

namespace tessera {
namespace {

constexpr uint64_t kLargePage = uint64_t{2} << 20;

}  // namespace

Arena::Arena(uint64_t bytes, std::optional<uint32_t> node) : bytes_(bytes) {
    if (bytes == 0) return;
    constexpr uint64_t kBytesMax = uint64_t{1} << 62;  // far beyond any address space; sums below
    if (bytes > kBytesMax) fail("{} of memory cannot be had", bytes_text(bytes));
    // mmap aligns to small pages: what starts in the middle of a large one is not backed by one.
    const uint64_t asked = bytes + kLargePage;
    void* const start = mmap(nullptr, asked, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) {
        fail("{} of memory cannot be had: {}", bytes_text(bytes),
             std::generic_category().message(errno));
    }
    const auto first = reinterpret_cast<uintptr_t>(start);
    const uintptr_t aligned = (first + kLargePage - 1) / kLargePage * kLargePage;
    const uintptr_t end = (aligned + bytes + 4095) / 4096 * 4096;
    if (aligned > first) munmap(start, aligned - first);
    if (first + asked > end) munmap(reinterpret_cast<void*>(end), first + asked - end);
    data_ = reinterpret_cast<std::byte*>(aligned);
    madvise(data_, bytes, MADV_HUGEPAGE);  // advice: small pages work too
    if (node) prefer_node({data_, bytes}, *node);
}

Arena::Arena(Arena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      used_(std::exchange(other.used_, 0)) {}

Arena& Arena::operator=(Arena&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(used_, other.used_);
    return *this;
}

Arena::~Arena() {
    if (data_ != nullptr) munmap(data_, bytes_);
}

std::byte* Arena::take(uint64_t bytes) {
    CHECK(bytes <= bytes_ - used_ && taken(bytes) <= bytes_ - used_);  // the former: taken() wraps
    std::byte* const at = data_ + used_;
    used_ += taken(bytes);
    return at;
}

}  // namespace tessera
