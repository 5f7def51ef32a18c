// The table of contents of a zip archive, as far as torch.save writes one: entries stored as they
// are, one disk, sizes below 4 GiB. Non-goals: decompression, encryption, zip64 sizes, and the
// checksums, which torch itself can be told not to write.
// Source: PKWARE APPNOTE.TXT 6.3, sections 4.3.7 (local header), 4.3.12 (central
// directory), 4.3.16.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>

namespace tessera {

// The entries by name, as spans of `file`. Throws Error naming `source` and the entry.
std::map<std::string, std::span<const std::byte>> read_zip(std::span<const std::byte> file,
                                                           std::string_view source);

}  // namespace tessera
