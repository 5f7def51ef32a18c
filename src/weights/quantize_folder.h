// A folder with bf16 or FP8 experts becomes one with MXFP4 experts, in the published layout: the
// same shards under the same names, each expert's `weight` as bytes with a `weight_scale` beside
// it, every other tensor and file byte for byte. A tensor at a time: what is held is one matrix of
// codes.
//
// The new folder grows as OUT.partial and gets its name when it is whole and was read back; a run
// that was killed goes on there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "weights/quantize.h"

namespace tessera {

struct QuantizeRequest {
    std::filesystem::path in, out;
    BlockRounding rounding = BlockRounding::nearest;
    // How much an error of each input column of an expert matters, by the matrix's name without
    // ".weight"; none: all alike.
    std::function<std::vector<float>(const std::string& module)> column_weights;
    // What else decides the bytes (the text of a calibration, say), in words: a run goes on only
    // where it is the same.
    std::string details;
    uint32_t threads = 1;
    std::function<void(uint64_t done, uint64_t total)> progress;  // bytes of IN's tensors
};

struct QuantizeReport {
    uint64_t matrices = 0;                 // that were rounded, those of earlier runs among them
    uint64_t bytes_in = 0, bytes_out = 0;  // of all tensors
    uint64_t shards = 0, shards_kept = 0;  // written by an earlier run
};

// Throws Error: OUT exists, IN is no whole checkpoint, is MXFP4 already, holds NaN or infinity
// (named by tensor, row and column), the disk is full, or what was read back is not what was
// written.
QuantizeReport quantize_folder(const QuantizeRequest& request);

// The same refusals of IN and OUT, as far as they can be told without reading tensors: before long
// work.
void check_request(const QuantizeRequest& request);

// config.json of the new folder: what `config` says, and that routed experts are MXFP4 in blocks of
// 32. A bf16 model gets a quantization_config in which every other layer of `modules_kept` is
// listed as ignored, as FP8 releases list theirs.
nlohmann::ordered_json quantized_config(nlohmann::ordered_json config,
                                        const std::vector<std::string>& modules_kept);

}  // namespace tessera
