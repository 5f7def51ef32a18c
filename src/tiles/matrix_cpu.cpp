// Matrix kernels: a unit of 16 output rows against 1 to 8 rows of activations at a time. A group of
// weights is unpacked once and used for all of them.
#include "tiles/table_cpu.h"

namespace tessera::TESSERA_ISA {
namespace {

// Rows of activations that share one unpacking. Eight rows with two accumulators each fill half of
// 32 registers, and eight is the block that speculation verifies.
constexpr uint32_t kRowsMax = 8;
constexpr uint32_t kBlocks = kPanelColumns / kMxBlock;

template <uint32_t count, uint32_t step>
inline void dot_rows(Pairs w, const bf16* const* rows, size_t pair, Floats* part) {
#pragma GCC unroll 8
    for (uint32_t row = 0; row < count; ++row) {
        part[row] = dot(part[row], w, splat_pair(pair_at(rows[row], pair + step)));
    }
}

// One group into `part`; `column` is its first.
template <Format format, uint32_t count>
inline void group(const std::byte* at, const bf16* const* rows, size_t column, Floats* part) {
    const Words words = load_words(at);
    if constexpr (format == Format::mxfp4) {
        dot_rows<count, 0>(e2m1_pairs<0>(words), rows, column / 2, part);
        dot_rows<count, 1>(e2m1_pairs<1>(words), rows, column / 2, part);
        dot_rows<count, 2>(e2m1_pairs<2>(words), rows, column / 2, part);
        dot_rows<count, 3>(e2m1_pairs<3>(words), rows, column / 2, part);
    } else if constexpr (format == Format::fp8) {
        dot_rows<count, 0>(e4m3_pairs<0>(words), rows, column / 2, part);
        dot_rows<count, 1>(e4m3_pairs<1>(words), rows, column / 2, part);
    } else if constexpr (format == Format::bf16) {
        dot_rows<count, 0>(bf16_pairs(words), rows, column / 2, part);
    } else {
#pragma GCC unroll 8
        for (uint32_t row = 0; row < count; ++row) {
            part[row] = mul_add(as_floats(words), splat(to_float(rows[row][column])), part[row]);
        }
    }
}

template <Format format, uint32_t count>
void unit(const std::byte* weights, uint32_t panels, const bf16* const* rows, float* out,
          size_t stride) {
    constexpr uint32_t kGroups = kMxBlock / group_columns(format);  // in a block
    Floats sum[count];
#pragma GCC unroll 8
    for (uint32_t row = 0; row < count; ++row) sum[row] = splat(0);
    for (size_t column = 0; column < size_t{panels} * kPanelColumns;) {
        const std::byte* at = weights + panel_scale_bytes(format);
        for (uint32_t block = 0; block < kBlocks; ++block) {
            Floats part[count];
#pragma GCC unroll 8
            for (uint32_t row = 0; row < count; ++row) part[row] = splat(0);
#pragma GCC unroll 4
            for (uint32_t i = 0; i < kGroups; ++i) {
                group<format, count>(at, rows, column, part);
                at += kGroupBytes;
                column += group_columns(format);
            }
            Floats scale{};
            if constexpr (format == Format::mxfp4) scale = e8m0_scales(weights + 16 * block);
            if constexpr (format == Format::fp8) scale = as_floats(load_words(weights));
#pragma GCC unroll 8
            for (uint32_t row = 0; row < count; ++row) {
                if constexpr (panel_scale_bytes(format) > 0) {
                    sum[row] = mul_add(part[row], scale, sum[row]);
                } else {
                    sum[row] = add(part[row], sum[row]);
                }
            }
        }
        weights += panel_bytes(format);
    }
#pragma GCC unroll 8
    for (uint32_t row = 0; row < count; ++row) store(out + row * stride, sum[row]);
}

template <uint32_t count>
void unit_int8(const std::byte* weights, uint32_t panels, const Int8Block* const* rows, float* out,
               size_t stride) {
    constexpr uint32_t kGroups = kMxBlock / group_columns(Format::mxfp4);
    Floats sum[count];
#pragma GCC unroll 8
    for (uint32_t row = 0; row < count; ++row) sum[row] = splat(0);
    for (size_t index = 0; index < size_t{panels} * kBlocks;) {
        const std::byte* at = weights + panel_scale_bytes(Format::mxfp4);
        for (uint32_t block = 0; block < kBlocks; ++block, ++index) {
            Ints part[count];
#pragma GCC unroll 8
            for (uint32_t row = 0; row < count; ++row)
                part[row] = splat_int(rows[row][index].balance);
#pragma GCC unroll 4
            for (uint32_t i = 0; i < kGroups; ++i, at += kGroupBytes) {
                const Words words = load_words(at);
                const Words low = e2m1_offset<false>(words), high = e2m1_offset<true>(words);
#pragma GCC unroll 8
                for (uint32_t row = 0; row < count; ++row) {
                    const int8_t* codes = rows[row][index].codes + 8 * i;
                    part[row] = dot4(dot4(part[row], low, codes), high, codes + 4);
                }
            }
            const Floats scale = e8m0_scales(weights + 16 * block);
#pragma GCC unroll 8
            for (uint32_t row = 0; row < count; ++row) {
                sum[row] = mul_add(to_floats(part[row]), mul(scale, splat(rows[row][index].scale)),
                                   sum[row]);
            }
        }
        weights += panel_bytes(Format::mxfp4);
    }
#pragma GCC unroll 8
    for (uint32_t row = 0; row < count; ++row) store(out + row * stride, sum[row]);
}

using Unit = void (*)(const std::byte*, uint32_t, const bf16* const*, float*, size_t);
using Int8Unit = void (*)(const std::byte*, uint32_t, const Int8Block* const*, float*, size_t);

template <Format format>
constexpr Unit kUnits[kRowsMax] = {unit<format, 1>, unit<format, 2>, unit<format, 3>,
                                   unit<format, 4>, unit<format, 5>, unit<format, 6>,
                                   unit<format, 7>, unit<format, 8>};
constexpr Int8Unit kInt8Units[kRowsMax] = {unit_int8<1>, unit_int8<2>, unit_int8<3>, unit_int8<4>,
                                           unit_int8<5>, unit_int8<6>, unit_int8<7>, unit_int8<8>};

// A unit stays in the first cache while groups of rows pass over it.
template <typename Kernel, typename Row>
void over_rows(const Kernel* kernels, const std::byte* weights, uint32_t units, uint32_t panels,
               uint64_t unit_bytes, const Row* const* rows, uint32_t count, float* out,
               size_t stride) {
    for (uint32_t u = 0; u < units; ++u, weights += unit_bytes, out += kUnitRows) {
        for (uint32_t row = 0; row < count; row += kRowsMax) {
            const uint32_t some = count - row < kRowsMax ? count - row : kRowsMax;
            kernels[some - 1](weights, panels, rows + row, out + row * stride, stride);
        }
    }
}

}  // namespace

void multiply(Format format, const std::byte* weights, uint32_t units, uint32_t panels,
              const Rows& rows, float* out, size_t stride) {
    const Unit* kernels = nullptr;
    switch (format) {
        case Format::mxfp4:
            kernels = kUnits<Format::mxfp4>;
            break;
        case Format::fp8:
            kernels = kUnits<Format::fp8>;
            break;
        case Format::bf16:
            kernels = kUnits<Format::bf16>;
            break;
        case Format::f32:
            kernels = kUnits<Format::f32>;
            break;
    }
    over_rows(kernels, weights, units, panels, uint64_t{panels} * panel_bytes(format), rows.at,
              rows.count, out, stride);
}

void multiply_int8(const std::byte* weights, uint32_t units, uint32_t panels, const Int8Rows& rows,
                   float* out, size_t stride) {
    over_rows(kInt8Units, weights, units, panels, uint64_t{panels} * panel_bytes(Format::mxfp4),
              rows.at, rows.count, out, stride);
}

}  // namespace tessera::TESSERA_ISA
