// How far the values of two bound checkpoints of one network are apart, matrix by matrix. The
// formats may differ: what is compared is what a step would multiply with.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "weights/bind.h"

namespace tessera {

// Of one part of the network, or of one matrix.
struct Difference {
    uint64_t elements = 0;
    uint64_t changed = 0;           // elements of another value
    double largest = 0;             // |a - b|
    double squares = 0, error = 0;  // sums of a^2 and (a - b)^2

    Difference& operator+=(const Difference& other);
    double relative() const;  // |a - b| / |a|; 0 where both are 0
    double snr_db() const;    // 10 log10 of squares / error; infinite where nothing changed
};

struct Worst {
    std::string matrix;
    Difference found;
};

struct Differences {
    std::map<Part, Difference> parts;
    Worst worst;  // the matrix of the largest relative error
};

// `a` is the original. Both have the same sizes. Throws Error naming what has not.
Differences compare_weights(const Weights& a, const Weights& b, uint32_t threads,
                            const std::function<void(uint64_t, uint64_t)>& progress = {});

// What else of two folders differs, in words: tensors that no step reads (MTP, vision) and files
// that are no tensors, the config and index apart. Byte for byte.
std::vector<std::string> other_differences(const Checkpoint& a, const Checkpoint& b);

}  // namespace tessera
