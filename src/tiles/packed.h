// The tile order of weights: what weights/pack writes and every matrix kernel reads, the same bytes
// for every instruction set; a GPU has the bits of mxfp4 and fp8 in orders of its own
// (tiles/e2m1_gpu.h, e4m3_gpu.h).
//
// A matrix is cut into units of 16 output rows, a unit into panels of 128 input columns. The 16
// rows are the 16 lanes of a kernel's accumulator, so a panel is a run of 64-byte words groups in
// which lane r (4 bytes) belongs to row r:
//
//   format  panel bytes   scales first                 a lane of a group holds
//   mxfp4   1088          4 blocks x 16 rows, e8m0     8 columns: nibble n < 4 is column 2n,
//                                                      n >= 4 is column 2(n - 4) + 1
//   fp8     2112          16 rows, f32                 4 columns: bytes are columns 0, 2, 1, 3
//   bf16    4096          -                            2 columns, the lower one in the lower half
//   f32     8192          -                            1 column
//
// The orders inside a lane let one mask yield a pair of neighbouring columns as two bf16 halves,
// one step from two floats, or four columns as bytes. Scales sit inside the panel: one stream of
// memory brings both. Rows and columns are padded with zeros to whole panels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/numbers.h"

namespace tessera {

inline constexpr uint32_t kUnitRows = 16;
inline constexpr uint32_t kPanelColumns = 128;
inline constexpr uint32_t kGroupBytes = 64;  // one load: 4 bytes of each of the 16 rows

constexpr uint32_t panel_scale_bytes(Format format) {
    switch (format) {
        case Format::mxfp4:
            return kPanelColumns / kMxBlock * kUnitRows;
        case Format::fp8:
            return kUnitRows * 4;
        case Format::bf16:
        case Format::f32:
            return 0;
    }
    return 0;
}

// Columns that one group holds.
constexpr uint32_t group_columns(Format format) {
    switch (format) {
        case Format::mxfp4:
            return 8;
        case Format::fp8:
            return 4;
        case Format::bf16:
            return 2;
        case Format::f32:
            return 1;
    }
    return 0;
}

constexpr uint32_t panel_bytes(Format format) {
    return panel_scale_bytes(format) + kPanelColumns / group_columns(format) * kGroupBytes;
}
static_assert(panel_bytes(Format::mxfp4) == 1088 && panel_bytes(Format::fp8) == 2112);

constexpr uint32_t padded(uint32_t count, uint32_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

// A matrix in tile order. Rows may be in another order than published: see weights/pack.h.
struct PackedMatrix {
    Format format = Format::bf16;
    uint32_t rows = 0;     // without padding
    uint32_t columns = 0;  // without padding
    const std::byte* data = nullptr;

    constexpr uint32_t units() const { return (rows + kUnitRows - 1) / kUnitRows; }
    constexpr uint32_t panels() const { return (columns + kPanelColumns - 1) / kPanelColumns; }
    constexpr uint64_t unit_bytes() const { return uint64_t{panels()} * panel_bytes(format); }
    constexpr uint64_t bytes() const { return units() * unit_bytes(); }
    constexpr const std::byte* unit(uint32_t index) const { return data + index * unit_bytes(); }
};

// 32 activations as integers with their scale, the other side of an mxfp4 block: products of whole
// numbers are exact, and so is their sum over the block. Codes stand in the order in which a group
// of mxfp4 meets them: of 8 columns, 0 4 1 5 (the low nibbles), then 2 6 3 7 (the high ones).
struct Int8Block {
    int8_t codes[kMxBlock];
    float scale;      // of a code, times 1/2: the kernel counts e2m1 in halves
    int32_t balance;  // -12 * sum of codes: undoes the offset that makes e2m1 unsigned
};
static_assert(sizeof(Int8Block) == 40);

// The same with 16-bit codes in two digits, 256 * high + low: the dot product of bytes takes one
// digit at a time, and a byte of weights costs less to unpack than a half.
struct Int16Block {
    int8_t high[kMxBlock];
    int8_t low[kMxBlock];
    float scale;
    int32_t balance;
};
static_assert(sizeof(Int16Block) == 72);
inline constexpr int32_t kInt16Largest = 127 * 256;

// Offset of column c, 0..7, of an mxfp4 group within 8 codes of a block.
inline constexpr uint8_t kBlockOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

// Which blocks a step makes for its mxfp4 weights: none where it has no such weights.
enum class Blocks : uint8_t { none, int16, int8 };

constexpr uint32_t block_bytes(Blocks blocks) {
    switch (blocks) {
        case Blocks::none:
            return 0;
        case Blocks::int16:
            return sizeof(Int16Block);
        case Blocks::int8:
            return sizeof(Int8Block);
    }
    return 0;
}

}  // namespace tessera
