// Writes safetensors files into a string: whole ones for toy checkpoints, and any header over any
// data for files that must be refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "checkpoint/safetensors.h"

namespace tessera::test {

struct WrittenTensor {
    std::string name;
    Dtype dtype;
    std::vector<uint64_t> shape;
    std::string bytes;  // product(shape) * dtype_bytes(dtype), not checked here
};

// The bytes of `values`, as WrittenTensor wants them.
template <typename T>
std::string raw_bytes(std::span<const T> values) {
    return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

// A file of any header and any data; `length` is what the first 8 bytes claim.
inline std::string safetensors_file(uint64_t length, std::string_view header,
                                    std::string_view data) {
    std::string file;
    for (int i = 0; i < 8; ++i) file += static_cast<char>(length >> 8 * i & 255);
    return file.append(header).append(data);
}

inline std::string safetensors_file(std::string_view header, std::string_view data) {
    return safetensors_file(header.size(), header, data);
}

// The tensors one after another in the order given; like the format's own writer, the header is
// padded with spaces so that the data begins at a multiple of 8.
inline std::string safetensors(const std::vector<WrittenTensor>& tensors) {
    nlohmann::json header = nlohmann::json::object();
    std::string data;
    for (const WrittenTensor& tensor : tensors) {
        const size_t begin = data.size();
        data += tensor.bytes;
        header[tensor.name] = {{"dtype", dtype_name(tensor.dtype)},
                               {"shape", tensor.shape},
                               {"data_offsets", {begin, data.size()}}};
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return safetensors_file(text, data);
}

}  // namespace tessera::test
