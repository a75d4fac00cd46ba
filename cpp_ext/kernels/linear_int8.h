// Products with weights of eight bits, x quantised row by row as it comes.
#pragma once

#include <cstdint>

#include "linear_f32.h"
#include "parallel.h"

namespace vlrt::kernels {

// y = act(sx * sw * (qx W - zx * sums) + bias) + residual, where `qx`, `sx` and `zx` are what ONNX's
// DynamicQuantizeLinear makes of each row of x by itself: unsigned bytes, their scale and their zero point.
//
// `x` [rows, inner], `y` [rows, columns]; `packed` [ceil(columns / 16)][ceil(inner / 4)][16][4], 64-byte
// aligned, zeros beyond the last column and row; `scales` [columns]; `sums` [columns]: of each column's
// weights. `y` may lie where `epilogue.residual` does, and must not overlap x. A row of y depends on nothing
// but its own row of x (and residual): not on the other rows, not on the threads. A row with a NaN in it
// becomes NaN. Needs Level::avx512_vnni.
void linear_int8(const LinearShape& shape, const float* x, const std::int8_t* packed, const float* scales,
                 const std::int32_t* sums, const Epilogue& epilogue, float* y, const Parallel& parallel);

}  // namespace vlrt::kernels
