// The bytes of one unit: stored rows, lane by lane, in the orders of tiles/packed.h.
#include <cstring>

#include "base/check.h"
#include "weights/pack.h"

namespace tessera {
namespace {

uint32_t word_at(const std::byte* from) {
    uint32_t word;
    std::memcpy(&word, from, 4);
    return word;
}

// The four nibbles at bits 0, 8, 16 and 24, side by side in 16 bits.
uint32_t gather_nibbles(uint32_t spread) {
    uint32_t x = spread & 0x0f0f0f0f;
    x = (x | x >> 4) & 0x00ff00ff;
    return (x | x >> 8) & 0xffff;
}

// ------------------------------------------------------------------ one row of one panel

// Lane `lane` of a panel's groups from `count` stored columns (128, fewer at the edge) at `from`.
void fill_mxfp4(const std::byte* from, uint32_t count, uint32_t lane, std::byte* groups) {
    for (uint32_t column = 0; column < count; column += 8) {
        const uint32_t word = word_at(from + column / 2);
        const uint32_t packed = gather_nibbles(word) | gather_nibbles(word >> 4) << 16;
        std::memcpy(groups + column / 8 * kGroupBytes + 4 * lane, &packed, 4);
    }
}

void fill_fp8(const std::byte* from, uint32_t count, uint32_t lane, std::byte* groups) {
    constexpr uint32_t kOrder[4] = {0, 2, 1, 3};  // of a lane's bytes, by column
    for (uint32_t column = 0; column < count; ++column)
        groups[column / 4 * kGroupBytes + 4 * lane + kOrder[column % 4]] = from[column];
}

void fill_plain(const std::byte* from, uint32_t count, uint32_t element_bytes, uint32_t lane,
                std::byte* groups) {
    const uint32_t columns = 4 / element_bytes;
    for (uint32_t column = 0; column < count; ++column) {
        std::memcpy(
            groups + column / columns * kGroupBytes + 4 * lane + column % columns * element_bytes,
            from + column * element_bytes, element_bytes);
    }
}

void fill_row(const SourceRow& source, Format format, uint32_t column, uint32_t count,
              uint32_t lane, std::byte* panel, std::span<const float> rounded) {
    std::byte* const groups = panel + panel_scale_bytes(format);
    const Matrix& m = *source.matrix;
    const uint64_t stored = m.stored_row(source.row);
    const std::byte* const row = m.data + stored * m.row_bytes();
    switch (format) {
        case Format::mxfp4: {
            const std::byte* scales =
                m.scales + stored * (m.columns / kMxBlock) + column / kMxBlock;
            for (uint32_t block = 0; block < count / kMxBlock; ++block)
                panel[block * kUnitRows + lane] = scales[block];
            return fill_mxfp4(row + column / 2, count, lane, groups);
        }
        case Format::fp8: {
            const uint64_t blocks = (m.columns + kFp8Block - 1) / kFp8Block;
            const uint64_t index = m.scale_row(source.row) * blocks + column / kFp8Block;
            std::memcpy(panel + 4 * lane, m.scales + 4 * index, 4);
            return fill_fp8(row + column, count, lane, groups);
        }
        case Format::bf16: {
            if (rounded.empty()) return fill_plain(row + 2 * column, count, 2, lane, groups);
            bf16 values[kPanelColumns];
            for (uint32_t i = 0; i < count; ++i) values[i] = to_bf16(rounded[column + i]);
            return fill_plain(reinterpret_cast<const std::byte*>(values), count, 2, lane, groups);
        }
        case Format::f32:
            return fill_plain(row + 4 * column, count, 4, lane, groups);
    }
}

}  // namespace

void pack_unit(std::span<const SourceRow> rows, Format format, uint32_t column_begin,
               uint32_t columns, std::byte* out) {
    CHECK(rows.size() <= kUnitRows);
    const uint32_t panels = (columns + kPanelColumns - 1) / kPanelColumns;
    std::memset(out, 0, uint64_t{panels} * panel_bytes(format));
    std::vector<float> rounded;
    for (uint32_t lane = 0; lane < rows.size(); ++lane) {
        const SourceRow& source = rows[lane];
        if (source.matrix == nullptr) continue;
        CHECK(column_begin + columns <= source.matrix->columns);
        rounded.clear();
        if (source.matrix->format != format) {
            CHECK(format == Format::bf16);
            rounded.resize(source.matrix->columns);
            dequantize_row(*source.matrix, source.row, rounded);
        }
        for (uint32_t panel = 0; panel < panels; ++panel) {
            const uint32_t column = panel * kPanelColumns;
            fill_row(source, format, column_begin + column,
                     std::min(kPanelColumns, columns - column), lane,
                     out + uint64_t{panel} * panel_bytes(format), rounded);
        }
    }
}

}  // namespace tessera
