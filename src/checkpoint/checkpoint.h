// A Hugging Face folder as published: config.json, an index with its shards (or one
// model.safetensors), mapped read-only. Knows names and bytes; what they mean is weights' business.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/mapped_file.h"
#include "checkpoint/safetensors.h"

namespace tessera {

// tensor name -> shard file name, from model.safetensors.index.json. File names are bare: the index
// cannot point outside its folder. Throws Error naming `source`.
std::map<std::string, std::string> parse_index(std::string_view text, std::string_view source);

struct Tensor {
    Dtype dtype;
    std::vector<uint64_t> shape;
    std::span<const std::byte> bytes;  // in the mapping; product(shape) * dtype_bytes(dtype)
};

struct Checkpoint {
    std::filesystem::path folder;
    Json config;  // config.json, trailing commas tolerated
    std::map<std::string, Tensor> tensors;
    std::vector<std::string> missing;  // what the index promises and the folder lacks, in words
    std::vector<MappedFile> shards;    // keeps the spans alive

    bool complete() const { return missing.empty(); }
};

// Reads headers only. `folder` has config.json and either model.safetensors.index.json or
// model.safetensors. A shard or tensor that the index names and the folder lacks goes to `missing`;
// everything else that is wrong throws Error: no such folder, a name in two shards, a link that
// leads out of the folder (a Hugging Face cache's blobs folder, ../../blobs, is the one exception).
Checkpoint open_checkpoint(const std::filesystem::path& folder);

// The whole of a small text file (config, tokenizer): at most `bytes_max`. Throws Error.
std::string read_text_file(const std::filesystem::path& path, size_t bytes_max = size_t{64} << 20);

}  // namespace tessera
