// How a checked checkpoint's tensors become views: what the binders of target and drafter share.
// Only they include it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/check.h"
#include "checkpoint/checkpoint.h"
#include "weights/bind.h"

namespace tessera {

// Binds by name; every tensor it is asked for was checked before.
class Binder {
  public:
    explicit Binder(const Checkpoint& checkpoint) : tensors_(checkpoint.tensors) {}

    std::vector<float> vector(const std::string& name) const {
        const Tensor& tensor = tensors_.at(name);
        std::vector<float> values(tensor.shape[0]);
        Matrix row = whole(tensor, nullptr, 1, tensor.shape[0]);
        dequantize_row(row, 0, values);
        return values;
    }

    // `module`.weight with its scales; `columns` in elements.
    Matrix matrix(const std::string& module, uint64_t rows, uint64_t columns) const {
        const Tensor& tensor = tensors_.at(module + ".weight");
        const Tensor* scales = nullptr;
        if (tensor.dtype == Dtype::e4m3) scales = &tensors_.at(module + ".weight_scale_inv");
        if (tensor.dtype == Dtype::u8) scales = &tensors_.at(module + ".weight_scale");
        return whole(tensor, scales, rows, columns);
    }

    FeedForward feed_forward(const std::string& module, uint32_t width, uint32_t hidden) const {
        return {matrix(module + ".gate_proj", width, hidden),
                matrix(module + ".up_proj", width, hidden),
                matrix(module + ".down_proj", hidden, width)};
    }

  private:
    static Format format_of(Dtype dtype) {
        switch (dtype) {
            case Dtype::f32:
                return Format::f32;
            case Dtype::bf16:
                return Format::bf16;
            case Dtype::e4m3:
                return Format::fp8;
            default:
                CHECK(dtype == Dtype::u8);  // no inventory lists another
                return Format::mxfp4;
        }
    }

    static Matrix whole(const Tensor& tensor, const Tensor* scales, uint64_t rows,
                        uint64_t columns) {
        const auto count = static_cast<uint32_t>(rows);
        return {format_of(tensor.dtype),
                count,
                static_cast<uint32_t>(columns),
                tensor.bytes.data(),
                scales ? scales->bytes.data() : nullptr,
                count,
                count,
                0};
    }

    const std::map<std::string, Tensor>& tensors_;
};

}  // namespace tessera
