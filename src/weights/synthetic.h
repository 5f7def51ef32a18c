// Random weights of any shape, for benchmarks: every matrix is a view into a few megabytes of
// seeded values of its format, so that nothing large exists before it is packed.
#pragma once

#include <cstdint>
#include <vector>

#include "weights/bind.h"

namespace tessera {

class SyntheticWeights {
  public:
    // Values keep a forward pass in ordinary numbers; routing is near uniform.
    SyntheticWeights(const Shape& shape, uint64_t seed);

    const Weights& weights() const { return weights_; }

  private:
    Matrix matrix(Format format, uint32_t rows, uint32_t columns);

    Weights weights_;
    std::vector<std::byte> pools_[4];  // by format
    std::vector<std::byte> fp8_scales_, mxfp4_scales_;
    uint64_t next_ = 0;  // decides where the next matrix begins
};

}  // namespace tessera
