// Matrix kernels: a unit of 16 output rows against 1 to 8 rows of activations at a time. A group of
// weights is unpacked once and used for all of them.
#include "tiles/table_cpu.h"

namespace tessera::TESSERA_ISA {
namespace {

// Rows of activations that share one unpacking. Eight rows with two accumulators each fill half of
// 32 registers, and eight is the block that speculation verifies.
constexpr uint32_t kRowsMax = 8;
constexpr uint32_t kBlocks = kPanelColumns / kMxBlock;

// Weights come from memory once, in one long run: asked for this far ahead, they arrive while the
// columns before them are multiplied. The hardware's own prefetch ends at every page. Into the
// second cache: the first has too few places for lines under way. Measured on one core that can
// read 16.9 GB/s, one row of mxfp4: 8.4 without, 13.3 into the first cache, 14.2 into the second; 2
// KiB ahead 12.2, 8 KiB 13.7.
constexpr size_t kPrefetchBytes = 4096;
inline void prefetch(const std::byte* at) {
    constexpr int kRead = 0, kSecondCache = 2;
    __builtin_prefetch(at + kPrefetchBytes, kRead, kSecondCache);
}

// ------------------------------------------------------------------ floats

template <uint32_t count, uint32_t units>
inline void multiply_pairs(const Pairs (&w)[units], const float* const* rows, size_t column,
                           Floats (&part)[units][count]) {
#pragma GCC unroll 8
    for (uint32_t row = 0; row < count; ++row) {
        const Floats x = splat(rows[row][column]);
#pragma GCC unroll 8
        for (uint32_t u = 0; u < units; ++u) part[u][row] = mul_add(w[u].low, x, part[u][row]);
    }
#pragma GCC unroll 8
    for (uint32_t row = 0; row < count; ++row) {
        const Floats x = splat(rows[row][column + 1]);
#pragma GCC unroll 8
        for (uint32_t u = 0; u < units; ++u) part[u][row] = mul_add(w[u].high, x, part[u][row]);
    }
}

// One group of each unit into `part`; `column` is its first.
template <Format format, uint32_t count, uint32_t units>
inline void multiply_group(const std::byte* at, size_t unit_bytes, const float* const* rows,
                           size_t column, Floats (&part)[units][count]) {
    Words words[units];
#pragma GCC unroll 8
    for (uint32_t u = 0; u < units; ++u) words[u] = load_words(at + u * unit_bytes);
    Pairs w[units];
    if constexpr (format == Format::fp8) {
#pragma GCC unroll 8
        for (uint32_t u = 0; u < units; ++u) w[u] = e4m3_pairs<0>(words[u]);
        multiply_pairs<count>(w, rows, column, part);
#pragma GCC unroll 8
        for (uint32_t u = 0; u < units; ++u) w[u] = e4m3_pairs<1>(words[u]);
        multiply_pairs<count>(w, rows, column + 2, part);
    } else if constexpr (format == Format::bf16) {
#pragma GCC unroll 8
        for (uint32_t u = 0; u < units; ++u) w[u] = bf16_pairs(words[u]);
        multiply_pairs<count>(w, rows, column, part);
    } else {
#pragma GCC unroll 8
        for (uint32_t row = 0; row < count; ++row) {
            const Floats x = splat(rows[row][column]);
#pragma GCC unroll 8
            for (uint32_t u = 0; u < units; ++u)
                part[u][row] = mul_add(as_floats(words[u]), x, part[u][row]);
        }
    }
}

// `units` units side by side, `unit_bytes` apart: an activation is fetched once for all of them.
// With two, sums over blocks go through the first cache, so that the sums within a block keep their
// registers.
template <Format format, uint32_t count, uint32_t units>
void units_floats(const std::byte* weights, size_t unit_bytes, uint32_t panels,
                  const float* const* rows, float* out, size_t stride) {
    constexpr uint32_t kGroups = kMxBlock / group_columns(format);  // in 32 columns
    Floats sum[units][count];
#pragma GCC unroll 8
    for (uint32_t u = 0; u < units; ++u) {
#pragma GCC unroll 8
        for (uint32_t row = 0; row < count; ++row) sum[u][row] = splat(0);
    }
    for (size_t column = 0; column < size_t{panels} * kPanelColumns;) {
        const std::byte* at = weights + panel_scale_bytes(format);
        for (uint32_t block = 0; block < kBlocks; ++block) {
            Floats part[units][count];
#pragma GCC unroll 8
            for (uint32_t u = 0; u < units; ++u) {
#pragma GCC unroll 8
                for (uint32_t row = 0; row < count; ++row) part[u][row] = splat(0);
            }
#pragma GCC unroll 4
            for (uint32_t i = 0; i < kGroups; ++i) {
#pragma GCC unroll 8
                for (uint32_t u = 0; u < units; ++u) prefetch(at + u * unit_bytes);
                multiply_group<format, count, units>(at, unit_bytes, rows, column, part);
                at += kGroupBytes;
                column += group_columns(format);
            }
#pragma GCC unroll 8
            for (uint32_t u = 0; u < units; ++u) {
#pragma GCC unroll 8
                for (uint32_t row = 0; row < count; ++row) {
                    if constexpr (format == Format::fp8) {
                        const Floats scale = as_floats(load_words(weights + u * unit_bytes));
                        sum[u][row] = mul_add(part[u][row], scale, sum[u][row]);
                    } else {
                        sum[u][row] = add(part[u][row], sum[u][row]);
                    }
                }
            }
        }
        weights += panel_bytes(format);
    }
#pragma GCC unroll 8
    for (uint32_t u = 0; u < units; ++u) {
#pragma GCC unroll 8
        for (uint32_t row = 0; row < count; ++row)
            store(out + row * stride + u * kUnitRows, sum[u][row]);
    }
}

// ------------------------------------------------------------------ mxfp4 and integers

// A row's sum over one block, in whole numbers.
struct Int8Sum {
    Ints part;

    void begin(const Int8Block& block) { part = splat_int(block.balance); }
    void add_group(const Bytes& low, const Bytes& high, const Int8Block& block, uint32_t column) {
        part = dot4(dot4(part, low, block.codes + column), high, block.codes + column + 4);
    }
    Ints whole() const { return part; }
};

struct Int16Sum {
    Ints upper, lower;  // of the high digits, of the low ones

    void begin(const Int16Block& block) {
        upper = splat_int(0);
        lower = splat_int(block.balance);
    }
    void add_group(const Bytes& low, const Bytes& high, const Int16Block& block, uint32_t column) {
        upper = dot4(dot4(upper, low, block.high + column), high, block.high + column + 4);
        lower = dot4(dot4(lower, low, block.low + column), high, block.low + column + 4);
    }
    Ints whole() const { return add(times_256(upper), lower); }
};

template <typename Sum, typename Block, uint32_t count>
void unit_blocks(const std::byte* weights, size_t, uint32_t panels, const Block* const* rows,
                 float* out, size_t stride) {
    Floats sum[count];
#pragma GCC unroll 8
    for (uint32_t row = 0; row < count; ++row) sum[row] = splat(0);
    for (size_t index = 0; index < size_t{panels} * kBlocks;) {
        const std::byte* at = weights + panel_scale_bytes(Format::mxfp4);
        for (uint32_t block = 0; block < kBlocks; ++block, ++index) {
            Sum part[count];
#pragma GCC unroll 8
            for (uint32_t row = 0; row < count; ++row) part[row].begin(rows[row][index]);
#pragma GCC unroll 4
            for (uint32_t column = 0; column < kMxBlock;
                 column += group_columns(Format::mxfp4), at += kGroupBytes) {
                prefetch(at);
                const Words words = load_words(at);
                const Bytes low = e2m1_bytes<false>(words), high = e2m1_bytes<true>(words);
#pragma GCC unroll 8
                for (uint32_t row = 0; row < count; ++row)
                    part[row].add_group(low, high, rows[row][index], column);
            }
            const Floats scale = e8m0_scales(weights + kUnitRows * block);
#pragma GCC unroll 8
            for (uint32_t row = 0; row < count; ++row) {
                sum[row] = mul_add(to_floats(part[row].whole()),
                                   mul(scale, splat(rows[row][index].scale)), sum[row]);
            }
        }
        weights += panel_bytes(Format::mxfp4);
    }
#pragma GCC unroll 8
    for (uint32_t row = 0; row < count; ++row) store(out + row * stride, sum[row]);
}

// ------------------------------------------------------------------ many rows

// `units` of a matrix, `unit_bytes` apart, against `count` rows.
template <typename T>
using Units = void (*)(const std::byte*, size_t unit_bytes, uint32_t panels, const T* const*,
                       float*, size_t stride);

template <Format format, uint32_t units>
constexpr Units<float> kFloats[kRowsMax] = {
    units_floats<format, 1, units>, units_floats<format, 2, units>, units_floats<format, 3, units>,
    units_floats<format, 4, units>, units_floats<format, 5, units>, units_floats<format, 6, units>,
    units_floats<format, 7, units>, units_floats<format, 8, units>};
template <typename Sum, typename Block>
constexpr Units<Block> kBlockUnits[kRowsMax] = {
    unit_blocks<Sum, Block, 1>, unit_blocks<Sum, Block, 2>, unit_blocks<Sum, Block, 3>,
    unit_blocks<Sum, Block, 4>, unit_blocks<Sum, Block, 5>, unit_blocks<Sum, Block, 6>,
    unit_blocks<Sum, Block, 7>, unit_blocks<Sum, Block, 8>};

// Units stay in the first cache while groups of rows pass over them. `pairs`: the kernels of two
// units, or null; with fewer rows than this the weights are what counts, and one unit streams best.
constexpr uint32_t kPairRowsMin = 3;
template <typename T>
void over_rows(const Units<T>* kernels, const Units<T>* pairs, Format format,
               const std::byte* weights, uint32_t units, uint32_t panels, const Rows<T>& rows,
               float* out, size_t stride) {
    const uint64_t unit_bytes = uint64_t{panels} * panel_bytes(format);
    for (uint32_t u = 0; u < units;) {
        const bool two = pairs != nullptr && u + 2 <= units && rows.count >= kPairRowsMin;
        for (uint32_t row = 0; row < rows.count; row += kRowsMax) {
            const uint32_t some = rows.count - row < kRowsMax ? rows.count - row : kRowsMax;
            (two ? pairs : kernels)[some - 1](weights, unit_bytes, panels, rows.at + row,
                                              out + row * stride, stride);
        }
        const uint32_t done = two ? 2 : 1;
        u += done;
        weights += done * unit_bytes;
        out += size_t{done} * kUnitRows;
    }
}

template <Format format>
void multiply_floats(const std::byte* weights, uint32_t units, uint32_t panels,
                     const Rows<float>& rows, float* out, size_t stride) {
    const Units<float>* pairs = nullptr;
    if constexpr (kManyRegisters) pairs = kFloats<format, 2>;
    over_rows(kFloats<format, 1>, pairs, format, weights, units, panels, rows, out, stride);
}

}  // namespace

void multiply(Format format, const std::byte* weights, uint32_t units, uint32_t panels,
              const Rows<float>& rows, float* out, size_t stride) {
    const auto kernel = format == Format::fp8    ? multiply_floats<Format::fp8>
                        : format == Format::bf16 ? multiply_floats<Format::bf16>
                                                 : multiply_floats<Format::f32>;
    kernel(weights, units, panels, rows, out, stride);
}

void multiply_int16(const std::byte* weights, uint32_t units, uint32_t panels,
                    const Rows<Int16Block>& rows, float* out, size_t stride) {
    over_rows<Int16Block>(kBlockUnits<Int16Sum, Int16Block>, nullptr, Format::mxfp4, weights, units,
                          panels, rows, out, stride);
}

void multiply_int8(const std::byte* weights, uint32_t units, uint32_t panels,
                   const Rows<Int8Block>& rows, float* out, size_t stride) {
    over_rows<Int8Block>(kBlockUnits<Int8Sum, Int8Block>, nullptr, Format::mxfp4, weights, units,
                         panels, rows, out, stride);
}

}  // namespace tessera::TESSERA_ISA
