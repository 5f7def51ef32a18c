#include "base/mapped_file.h"

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/error.h"

namespace tessera {
namespace {

std::string last_error() {
    return std::generic_category().message(errno);
}

// Closes on every way out of the constructor; a mapping outlives its descriptor.
struct Descriptor {
    int number;
    ~Descriptor() {
        if (number >= 0) close(number);
    }
};

void unmap(std::span<const std::byte> bytes) {
    if (bytes.empty()) return;
    const int result = munmap(const_cast<std::byte*>(bytes.data()), bytes.size());
    CHECK(result == 0);
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) {
    // O_NONBLOCK: opening a pipe that nobody writes to must fail the next test, not wait.
    const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)};
    if (file.number < 0) fail("{}: cannot be opened: {}", path.string(), last_error());
    struct stat facts {};
    if (fstat(file.number, &facts) != 0) {
        fail("{}: cannot be examined: {}", path.string(), last_error());
    }
    if (!S_ISREG(facts.st_mode)) {
        fail("{}: expected a regular file, found {}", path.string(),
             S_ISDIR(facts.st_mode) ? "a folder" : "a device, pipe or socket");
    }
    const auto size = static_cast<size_t>(facts.st_size);
    if (size == 0) return;  // mmap refuses an empty range
    void* const start = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.number, 0);
    if (start == MAP_FAILED) {
        fail("{}: its {} bytes cannot be mapped: {}", path.string(), size, last_error());
    }
    bytes_ = {static_cast<const std::byte*>(start), size};
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    if (this != &other) {
        unmap(bytes_);
        bytes_ = std::exchange(other.bytes_, {});
    }
    return *this;
}

void MappedFile::drop(std::span<const std::byte> part) const {
    if (part.data() < bytes_.data() || part.data() + part.size() > bytes_.data() + bytes_.size())
        return;
    constexpr uintptr_t kPage = 4096;
    const auto begin = reinterpret_cast<uintptr_t>(part.data());
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
    const uintptr_t last = (begin + part.size()) / kPage * kPage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

MappedFile::~MappedFile() {
    unmap(bytes_);
}

}  // namespace tessera
