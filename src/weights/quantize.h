// Weights become MXFP4, row by row: blocks of 32 elements along the input axis, each a 4-bit e2m1
// code, with one e8m0 scale for the block (OCP Microscaling Formats 1.0, section 5.2). Knows
// numbers and nothing of tensors, files or threads.
//
// An element is divided by the scale and rounded to the nearest of {0, .5, 1, 1.5, 2, 3, 4, 6}, a
// tie to the even code, and what lies beyond 6 saturates. A sign is kept, that of a zero too. A
// block of zeros has the scale 2^-127.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/numbers.h"
#include "tiles/kernels.h"

namespace tessera {

enum class BlockRounding : uint8_t {
    // The scale of OCP MX 1.0, section 6.3: 2^(floor(log2(largest magnitude)) - 2), 2 being the
    // exponent of e2m1's largest number. The largest element lands in [4, 8), and above 7 it loses
    // up to a quarter of itself.
    nearest,
    // Of the scales from a quarter of that to twice it, the one with the least sum of squared
    // errors times the weights of their columns; of equals nearest's own. A scale four times larger
    // never wins: below 8 its values are among those of the one before.
    mse,
};

// `row` holds a multiple of 32 elements in bf16, two bytes each, as files store them and wherever
// they lie; `codes` has half as many bytes as elements (the even element in the low nibble),
// `scales` one byte a block. False if an element is NaN or infinite: MXFP4 has neither; what was
// written is then of no use. Exact for every bf16, whatever its block and the instruction set.
[[nodiscard]] bool quantize_nearest(std::span<const std::byte> row, std::span<std::byte> codes,
                                    std::span<std::byte> scales,
                                    const Kernels& kernels = best_kernels());

// The same for any floats and either rounding. `column_weights`, 0 or more each, tell how much an
// error of a column matters; empty: all alike. Only mse asks for them.
[[nodiscard]] bool quantize_row(std::span<const float> row, BlockRounding rounding,
                                std::span<const float> column_weights, std::span<std::byte> codes,
                                std::span<std::byte> scales);

}  // namespace tessera
