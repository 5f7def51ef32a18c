// A file mapped read-only. The mapping is the file: nothing is copied, and pages that were read can
// be dropped again by the system.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace tessera {

class MappedFile {
  public:
    // Maps the whole regular file. Throws Error: not there, a folder or device, not readable.
    explicit MappedFile(const std::filesystem::path& path);
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    ~MappedFile();

    std::span<const std::byte> bytes() const { return bytes_; }

    // Lets go of the memory behind `part` of the mapping, which can still be read, from the disk.
    // Parts of no whole page, and of other memory, are left alone.
    void drop(std::span<const std::byte> part) const;

  private:
    std::span<const std::byte> bytes_;
};

}  // namespace tessera
