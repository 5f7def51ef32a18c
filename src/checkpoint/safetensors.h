// The safetensors container: 8 bytes of little-endian header length, a JSON header, then the data.
// Knows bytes, names, dtypes and shapes; refuses to know what a tensor is for.
// Source: the format's own description, github.com/huggingface/safetensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

// The element types that published checkpoints use; the others of the format are refused by name.
enum class Dtype : uint8_t { f32, f16, bf16, e4m3, u8, i32, i64 };

uint32_t dtype_bytes(Dtype dtype);
std::string_view dtype_name(Dtype dtype);  // as the format spells it: "BF16", "F8_E4M3", …

struct TensorInfo {
    Dtype dtype;
    std::vector<uint64_t> shape;
    uint64_t begin;  // bytes from the start of the file
    uint64_t end;
};

// The tensors of one file by name. `head` holds at least the first 8 bytes and the whole header (it
// may be the whole file); `file_bytes` is the size of the file. Every span lies inside the file, is
// as long as dtype and shape say, and overlaps no other. Throws Error naming `source` and, where
// there is one, the tensor, with what was expected and what was found.
std::map<std::string, TensorInfo> parse_safetensors(std::span<const std::byte> head,
                                                    uint64_t file_bytes, std::string_view source);

}  // namespace tessera
