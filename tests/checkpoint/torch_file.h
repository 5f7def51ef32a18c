// Builds files as torch.save writes them, with any part of them wrong.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::test {

// The lowest `count` bytes of `value`, lowest first.
inline std::string bytes_of(uint64_t value, int count) {
    std::string bytes;
    for (int i = 0; i < count; ++i, value >>= 8) bytes += static_cast<char>(value & 255);
    return bytes;
}

struct ZipEntry {
    std::string name;
    std::string bytes;
    uint16_t method = 0;  // 8: deflated
    uint16_t flags = 0x0808;
    uint32_t claimed_bytes = UINT32_MAX - 1;  // as the directory says; by default the truth
    uint32_t local = UINT32_MAX - 1;          // likewise
    std::string local_name = "";              // likewise, where not empty
};

// The bytes of an archive and where its parts begin.
struct Zip {
    std::string bytes;
    size_t directory = 0;
    size_t end_record = 0;
};

inline Zip zip(const std::vector<ZipEntry>& entries) {
    Zip made;
    std::string directory;
    for (const ZipEntry& entry : entries) {
        const auto either = [](uint32_t claimed, size_t truth) {
            return claimed == UINT32_MAX - 1 ? truth : claimed;
        };
        const std::string& local_name = entry.local_name.empty() ? entry.name : entry.local_name;
        const uint64_t size = either(entry.claimed_bytes, entry.bytes.size());
        const std::string facts = bytes_of(entry.flags, 2) + bytes_of(entry.method, 2) +
                                  bytes_of(0, 8) + bytes_of(size, 4) + bytes_of(size, 4) +
                                  bytes_of(entry.name.size(), 2);
        directory += bytes_of(0x02014b50, 4) + bytes_of(0, 4) + facts + bytes_of(0, 12) +
                     bytes_of(either(entry.local, made.bytes.size()), 4) + entry.name;
        made.bytes += bytes_of(0x04034b50, 4) + bytes_of(0, 2) + bytes_of(entry.flags, 2) +
                      bytes_of(entry.method, 2) + bytes_of(0, 16) + bytes_of(local_name.size(), 2) +
                      bytes_of(3, 2) + local_name + "pad" + entry.bytes;
    }
    made.directory = made.bytes.size();
    made.end_record = made.directory + directory.size();
    made.bytes += directory + bytes_of(0x06054b50, 4) + bytes_of(0, 4) +
                  bytes_of(entries.size(), 2) + bytes_of(entries.size(), 2) +
                  bytes_of(directory.size(), 4) + bytes_of(made.directory, 4) + bytes_of(0, 2);
    return made;
}

// Pieces of a pickle; each leaves one value on the stack.
inline std::string text(std::string_view value) {
    return std::string("X").append(bytes_of(value.size(), 4)).append(value);
}
inline std::string integer(uint64_t value) {
    return std::string("\x8a\x08").append(bytes_of(value, 8));
}
inline std::string global(std::string_view module, std::string_view name) {
    return std::string("c").append(module).append("\n").append(name).append("\n");
}
inline std::string tuple(std::string_view items) {
    return std::string("(").append(items).append("t");
}
inline std::string program(std::string_view body) {
    return std::string("\x80\x02").append(body).append(".");
}

// {mask_token_id, embedding}, each field a piece of pickle; what they say by default is accepted.
// `more_items` are further keys and values.
struct TorchFile {
    std::string token = integer(5);
    std::string rebuild = global("torch._utils", "_rebuild_tensor_v2");
    std::string storage_type = global("torch", "BFloat16Storage");
    std::string key = text("0");
    std::string held = integer(4);
    std::string offset = integer(0);
    std::string size = tuple(integer(4));
    std::string stride = tuple(integer(1));
    std::string requires_grad = "\x89";
    std::string hooks = global("collections", "OrderedDict") + ")R";
    std::string more_items = "";
    std::string data = std::string("\x80\x3f\x00\x40\x40\x40\x80\x40", 8);  // 1, 2, 3, 4

    std::string tensor() const {
        const std::string id =
            tuple(text("storage") + storage_type + key + text("cpu") + held) + "Q";
        return rebuild + tuple(id + offset + size + stride + requires_grad + hooks) + "R";
    }
    std::string pickle() const {
        return program("}(" + text("mask_token_id") + token + text("embedding") + tensor() +
                       more_items + "u");
    }
    std::vector<ZipEntry> entries() const {
        return {{.name = "any/data.pkl", .bytes = pickle()},
                {.name = "any/byteorder", .bytes = "little"},
                {.name = "any/data/0", .bytes = data}};
    }
    std::string bytes() const { return zip(entries()).bytes; }
};

// An archive of this pickle and a storage of four bf16.
inline std::string torch_file(const std::string& pickle) {
    return zip({{.name = "any/data.pkl", .bytes = pickle},
                {.name = "any/data/0", .bytes = TorchFile().data}})
        .bytes;
}

}  // namespace tessera::test
