// Writes one safetensors file that is whole or not there: under a temporary name, flushed to the
// disk, read back, and only then renamed. Knows bytes, names, dtypes and shapes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"

namespace tessera {

struct ShardTensor {
    std::string name;
    Dtype dtype;
    std::vector<uint64_t> shape;

    uint64_t bytes() const;
};

// Writes all of `text` to a file that is renamed from a temporary name. Throws Error.
void write_whole(const std::filesystem::path& file, std::string_view text);

class ShardWriter {
  public:
    // Begins `file`.tmp, whatever was left there, with the header of `tensors` in this order.
    ShardWriter(const std::filesystem::path& file, std::span<const ShardTensor> tensors);
    ~ShardWriter();  // an unfinished file is removed
    ShardWriter(const ShardWriter&) = delete;
    ShardWriter& operator=(const ShardWriter&) = delete;

    // The next bytes of data, of any length: tensor after tensor. Throws Error: the disk is full, …
    void write(std::span<const std::byte> bytes);

    // All data was written. Flushes it, drops it from the system's memory and reads it again from
    // the disk; what came back is what was written, or Error. Then the file has its name. Returns
    // its bytes.
    uint64_t finish();

  private:
    // What was written in one go: enough to tell what comes back.
    struct Piece {
        uint64_t bytes;
        uint64_t checksum;
    };

    std::filesystem::path file_, temporary_;
    int descriptor_;
    uint64_t expected_;  // bytes of the whole file
    uint64_t written_ = 0;
    std::vector<Piece> pieces_;
};

}  // namespace tessera
