#include "checkpoint/shard_writer.h"

#include <cerrno>
#include <cstring>
#include <system_error>

#include <fcntl.h>
#include <unistd.h>

#include "base/check.h"
#include "base/error.h"
#include "base/json.h"
#include "base/mapped_file.h"

namespace tessera {
namespace {

constexpr uint64_t kAlignment = 8;  // of the data, as the format's own writer has it

std::string last_error() {
    return std::generic_category().message(errno);
}

// Tells a changed byte from an unchanged one at memory's speed; not made against an adversary.
uint64_t checksum(std::span<const std::byte> bytes) {
    constexpr uint64_t kPrime = 0x9e3779b97f4a7c15u;
    uint64_t sums[4] = {1, 2, 3, 4};
    const auto take = [&](size_t lane, uint64_t word) {
        sums[lane] = ((sums[lane] ^ word) * kPrime) ^ (sums[lane] >> 29);
    };
    size_t at = 0;
    for (; at + sizeof(sums) <= bytes.size(); at += sizeof(sums)) {
        uint64_t words[4];
        std::memcpy(words, bytes.data() + at, sizeof(words));
        for (size_t lane = 0; lane < 4; ++lane) take(lane, words[lane]);
    }
    for (; at < bytes.size(); ++at) take(at % 4, std::to_integer<uint64_t>(bytes[at]));
    for (size_t lane = 1; lane < 4; ++lane) take(0, sums[lane]);
    return sums[0];
}

std::string header_of(std::span<const ShardTensor> tensors) {
    Json header = Json::object();
    header["__metadata__"] = {{"format", "pt"}};  // transformers refuses a file without it
    uint64_t at = 0;
    for (const ShardTensor& tensor : tensors) {
        CHECK(!header.contains(tensor.name));
        header[tensor.name] = {{"dtype", dtype_name(tensor.dtype)},
                               {"shape", tensor.shape},
                               {"data_offsets", {at, at + tensor.bytes()}}};
        at += tensor.bytes();
    }
    std::string text = header.dump();
    text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
    std::string length;
    for (int i = 0; i < 8; ++i) length += static_cast<char>(text.size() >> 8 * i & 255);
    return length + text;
}

int create(const std::filesystem::path& file) {
    const int descriptor = open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor < 0) fail("{}: cannot be written: {}", file.string(), last_error());
    return descriptor;
}

// The name of a file is safe only once its folder is.
void flush_folder(const std::filesystem::path& folder) {
    const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return;
    fsync(descriptor);  // some file systems refuse; the data is flushed all the same
    close(descriptor);
}

void rename_flushed(const std::filesystem::path& from, const std::filesystem::path& to) {
    if (rename(from.c_str(), to.c_str()) != 0)
        fail("{}: cannot be renamed to {}: {}", from.string(), to.string(), last_error());
    flush_folder(to.parent_path());
}

std::filesystem::path temporary_of(const std::filesystem::path& file) {
    return file.string() + ".tmp";
}

void write_all(int descriptor, std::span<const std::byte> bytes,
               const std::filesystem::path& file) {
    while (!bytes.empty()) {
        const ssize_t count = ::write(descriptor, bytes.data(), bytes.size());
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) fail("{}: cannot be written: {}", file.string(), last_error());
        bytes = bytes.subspan(static_cast<size_t>(count));
    }
}

}  // namespace

uint64_t ShardTensor::bytes() const {
    uint64_t product = dtype_bytes(dtype);
    for (const uint64_t extent : shape) product *= extent;
    return product;
}

void write_whole(const std::filesystem::path& file, std::string_view text) {
    const std::filesystem::path temporary = temporary_of(file);
    const int descriptor = create(temporary);
    try {
        write_all(descriptor, std::as_bytes(std::span(text)), temporary);
    } catch (...) {
        close(descriptor);
        throw;
    }
    const bool flushed = fsync(descriptor) == 0;
    if (close(descriptor) != 0 || !flushed)
        fail("{}: cannot be written: {}", temporary.string(), last_error());
    rename_flushed(temporary, file);
}

ShardWriter::ShardWriter(const std::filesystem::path& file, std::span<const ShardTensor> tensors)
    : file_(file), temporary_(temporary_of(file)), descriptor_(create(temporary_)) {
    const std::string header = header_of(tensors);
    expected_ = header.size();
    for (const ShardTensor& tensor : tensors) expected_ += tensor.bytes();
    write(std::as_bytes(std::span(header)));
}

ShardWriter::~ShardWriter() {
    if (descriptor_ < 0) return;
    close(descriptor_);
    unlink(temporary_.c_str());
}

void ShardWriter::write(std::span<const std::byte> bytes) {
    CHECK(written_ + bytes.size() <= expected_);
    write_all(descriptor_, bytes, temporary_);
    pieces_.push_back({bytes.size(), checksum(bytes)});
    written_ += bytes.size();
}

uint64_t ShardWriter::finish() {
    CHECK(written_ == expected_);
    if (fsync(descriptor_) != 0)
        fail("{}: cannot be flushed: {}", temporary_.string(), last_error());
    posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED);  // what is read now comes from the disk
    const MappedFile back(temporary_);
    if (back.bytes().size() != written_)
        fail("{}: {} bytes came back of {} written", temporary_.string(), back.bytes().size(),
             written_);
    uint64_t at = 0;
    for (const Piece& piece : pieces_) {
        const auto bytes = back.bytes().subspan(at, piece.bytes);
        if (checksum(bytes) != piece.checksum)
            fail("{}: bytes {} to {} came back changed: is this disk sound?", temporary_.string(),
                 at, at + piece.bytes);
        back.drop(bytes);
        at += piece.bytes;
    }
    rename_flushed(temporary_, file_);
    close(descriptor_);
    descriptor_ = -1;
    return written_;
}

}  // namespace tessera
