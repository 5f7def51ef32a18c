// Included by the kernel files alone, which are compiled once for each instruction set with
// TESSERA_ISA naming it. Whatever is inline here or in what it includes may be compiled with
// instructions that this processor lacks, so kernel files include no header with functions that
// others call, beyond the conversions of numbers.h, which inline.
#pragma once

#include "tiles/kernels.h"
#include "tiles/lanes.h"

namespace tessera::TESSERA_ISA {

uint32_t read(const std::byte* from, size_t bytes);
void multiply(Format format, const std::byte* weights, uint32_t units, uint32_t panels,
              const Rows<float>& rows, float* out, size_t stride);
void multiply_int16(const std::byte* weights, uint32_t units, uint32_t panels,
                    const Rows<Int16Block>& rows, float* out, size_t stride);
void multiply_int8(const std::byte* weights, uint32_t units, uint32_t panels,
                   const Rows<Int8Block>& rows, float* out, size_t stride);
void norm(const float* x, const float* gain, uint32_t width, float epsilon, float* out);
void quantize_int16(const float* x, uint32_t blocks, Int16Block* out);
void quantize_int8(const float* x, uint32_t blocks, Int8Block* out);
uint32_t to_mxfp4(const std::byte* row, uint32_t blocks, std::byte* codes, std::byte* scales);
void gate(const float* gate, const float* up, uint32_t count, float* out);
void add_weighted(const float* x, float weight, uint32_t count, float* sum);
void add_residual(const float* update, uint32_t count, float* x);
float exp_sum(const float* x, uint32_t count, float scale, float top);
void attend(const AttendTask& task);
void merge(const float* values, const float* highest, const float* total, uint32_t parts,
           size_t value_stride, size_t number_stride, const float* sink, uint32_t v_head_dim,
           float* out);

extern const Kernels kTable;

}  // namespace tessera::TESSERA_ISA
