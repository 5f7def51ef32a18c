#include "checkpoint/zip.h"

#include <cstdint>
#include <utility>

#include "base/error.h"
#include "checkpoint/excerpt.h"
#include "checkpoint/little_endian.h"

namespace tessera {
namespace {

constexpr uint32_t kLocalMark = 0x04034b50, kCentralMark = 0x02014b50, kEndMark = 0x06054b50;
constexpr uint32_t kEnd64Mark = 0x06064b50;
constexpr size_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22;
constexpr size_t kEnd64Bytes = 56 + 20;  // the zip64 record and its locator
constexpr uint16_t kEncrypted = 1;

// Where the central directory lies.
struct Directory {
    size_t entries;
    size_t begin;
    size_t end;
};

// torch always writes a zip64 record, though its files need none. It is allowed where it repeats
// what the plain record says, so that no two readers of the file can disagree.
void check_between(std::span<const std::byte> file, const Directory& directory, size_t end_record,
                   std::string_view source) {
    const std::span<const std::byte> between =
        file.subspan(directory.end, end_record - directory.end);
    if (between.empty()) return;
    if (between.size() != kEnd64Bytes || little_endian<uint32_t>(between, 0) != kEnd64Mark) {
        fail("{}: {} unknown bytes after the zip directory, at byte {}", source, between.size(),
             directory.end);
    }
    if (little_endian<uint64_t>(between, 32) != directory.entries ||
        little_endian<uint64_t>(between, 40) != directory.end - directory.begin ||
        little_endian<uint64_t>(between, 48) != directory.begin) {
        fail("{}: its zip64 record and its zip record disagree", source);
    }
}

Directory find_directory(std::span<const std::byte> file, std::string_view source) {
    if (file.size() < kEndBytes ||
        little_endian<uint32_t>(file, file.size() - kEndBytes) != kEndMark) {
        fail(
            "{}: expected a zip archive as torch.save writes it, found {} bytes without its end "
            "record; "
            "not a torch file, or cut off",
            source, file.size());
    }
    const size_t end_record = file.size() - kEndBytes;
    const std::span<const std::byte> end = file.subspan(end_record);
    const size_t entries = little_endian<uint16_t>(end, 10);
    const size_t size = little_endian<uint32_t>(end, 12), begin = little_endian<uint32_t>(end, 16);
    if (entries == 0xffff || size == 0xffffffff || begin == 0xffffffff) {
        fail("{}: a zip64 archive; only sizes below 4 GiB are read", source);
    }
    if (little_endian<uint16_t>(end, 4) != 0 || little_endian<uint16_t>(end, 6) != 0 ||
        little_endian<uint16_t>(end, 8) != entries || little_endian<uint16_t>(end, 20) != 0) {
        fail("{}: a zip archive of several disks, or with a comment; torch writes neither", source);
    }
    if (begin > end_record || size > end_record - begin) {
        fail("{}: the zip directory is said to be {} bytes at byte {}, its end record is at {}",
             source, size, begin, end_record);
    }
    const Directory directory{entries, begin, begin + size};
    check_between(file, directory, end_record, source);
    return directory;
}

// One entry of the directory: what it is called and where its local header is.
struct Entry {
    std::string name;
    size_t local;
    size_t bytes;
    size_t record_bytes;  // of this directory record
};

Entry read_entry(std::span<const std::byte> directory, std::string_view source) {
    if (directory.size() < kCentralBytes || little_endian<uint32_t>(directory, 0) != kCentralMark) {
        fail("{}: the zip directory has fewer entries than it says", source);
    }
    const size_t name_bytes = little_endian<uint16_t>(directory, 28);
    const size_t record_bytes = kCentralBytes + name_bytes +
                                little_endian<uint16_t>(directory, 30) +
                                little_endian<uint16_t>(directory, 32);
    if (record_bytes > directory.size()) {
        fail("{}: an entry of the zip directory needs {} bytes, {} are left", source, record_bytes,
             directory.size());
    }
    const std::string name(reinterpret_cast<const char*>(directory.data()) + kCentralBytes,
                           name_bytes);
    const unsigned method = little_endian<uint16_t>(directory, 10);
    if (method != 0 || (little_endian<uint16_t>(directory, 8) & kEncrypted) != 0) {
        fail(
            "{}: zip entry {}: expected it stored as it is, found method {}{}; save it with "
            "torch.save",
            source, excerpt(name), method, method == 0 ? ", encrypted" : "");
    }
    const size_t stored = little_endian<uint32_t>(directory, 20);
    const size_t bytes = little_endian<uint32_t>(directory, 24);
    const size_t local = little_endian<uint32_t>(directory, 42);
    if (stored == 0xffffffff || bytes == 0xffffffff || local == 0xffffffff) {
        fail("{}: zip entry {}: zip64 sizes; only those below 4 GiB are read", source,
             excerpt(name));
    }
    if (stored != bytes) {
        fail("{}: zip entry {}: {} bytes stored as {}", source, excerpt(name), bytes, stored);
    }
    return {name, local, bytes, record_bytes};
}

// The entry's bytes, which follow its local header. `body` is the file up to its directory.
std::span<const std::byte> locate(std::span<const std::byte> body, const Entry& entry,
                                  std::string_view source) {
    const auto refuse = [&](std::string_view what) {
        fail("{}: zip entry {}, {} bytes at byte {}: {}", source, excerpt(entry.name), entry.bytes,
             entry.local, what);
    };
    if (entry.local > body.size() || body.size() - entry.local < kLocalBytes) {
        refuse("lies outside the archive");
    }
    const std::span<const std::byte> local = body.subspan(entry.local);
    if (little_endian<uint32_t>(local, 0) != kLocalMark) refuse("has no header there");
    const size_t name_bytes = little_endian<uint16_t>(local, 26);
    const size_t begin = kLocalBytes + name_bytes + little_endian<uint16_t>(local, 28);
    if (begin > local.size() || entry.bytes > local.size() - begin) {
        refuse("lies outside the archive");
    }
    const std::string_view name(reinterpret_cast<const char*>(local.data()) + kLocalBytes,
                                name_bytes);
    if (name != entry.name) refuse("has another name there");
    return local.subspan(begin, entry.bytes);
}

}  // namespace

std::map<std::string, std::span<const std::byte>> read_zip(std::span<const std::byte> file,
                                                           std::string_view source) {
    const Directory directory = find_directory(file, source);
    const std::span<const std::byte> body = file.first(directory.begin);
    std::map<std::string, std::span<const std::byte>> entries;
    size_t at = directory.begin;
    for (size_t i = 0; i < directory.entries; ++i) {
        const Entry entry = read_entry(file.subspan(at, directory.end - at), source);
        if (!entries.emplace(entry.name, locate(body, entry, source)).second) {
            fail("{}: zip entry {} appears twice", source, excerpt(entry.name));
        }
        at += entry.record_bytes;
    }
    if (at != directory.end) {
        fail("{}: the zip directory has {} bytes after its last entry", source, directory.end - at);
    }
    return entries;
}

}  // namespace tessera
