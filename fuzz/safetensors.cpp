// Any bytes as a safetensors file: refused, or every promise of safetensors.h holds.
#include "checkpoint/safetensors.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/error.h"

namespace {

void check_promises(const std::map<std::string, tessera::TensorInfo>& tensors, size_t size) {
    std::vector<std::pair<uint64_t, uint64_t>> spans;
    for (const auto& [name, tensor] : tensors) {
        CHECK(tensor.begin >= 8 && tensor.begin <= tensor.end && tensor.end <= size);
        unsigned __int128 bytes = tessera::dtype_bytes(tensor.dtype);
        for (const uint64_t extent : tensor.shape) bytes = bytes * extent;
        CHECK(tensor.shape.size() <= 8);
        CHECK(bytes == tensor.end - tensor.begin);
        spans.emplace_back(tensor.begin, tensor.end);
    }
    std::ranges::sort(spans);
    for (size_t i = 1; i < spans.size(); ++i) CHECK(spans[i - 1].second == spans[i].first);
    CHECK(spans.empty() || spans.back().second == size);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const auto bytes = std::as_bytes(std::span(data, size));
    try {
        check_promises(tessera::parse_safetensors(bytes, size, "file"), size);
    } catch (const tessera::Error&) {
    }
    return 0;
}
