// How tiles hold results on their way from kernels to buffers; shared by the files of the executor.
#pragma once

#include <algorithm>
#include <cstdint>

#include "model/ranks.h"
#include "tiles/packed.h"

namespace tessera {

// Units whose results are held at once: 64 rows of them fill half of a second cache's smallest.
inline constexpr uint32_t kSpanUnits = 8;
inline constexpr uint32_t kSpanRows = kSpanUnits * kUnitRows;

// Calls each(units) for runs of at most kSpanUnits units of [begin, end).
template <typename Each>
void in_spans(uint32_t begin, uint32_t end, Each each) {
    for (; begin < end; begin += kSpanUnits) each(Span{begin, std::min(begin + kSpanUnits, end)});
}

// Zeroes a row behind `width`, to whole panels: kernels read panels, and what another buffer left
// there could be NaN.
inline void pad_row(float* row, uint32_t width) {
    std::fill(row + width, row + padded(width, kPanelColumns), 0.0f);
}

}  // namespace tessera
