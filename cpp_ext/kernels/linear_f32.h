// Products with weights in fp32.
#pragma once

#include <cstddef>

#include "activations.h"
#include "parallel.h"

namespace vlrt::kernels {

struct LinearShape {
  std::size_t rows, inner, columns;
};

// What becomes of the product before it is written: act(… + bias) + residual.
struct Epilogue {
  const float* bias;      // [columns], or null
  const float* residual;  // [rows, columns], or null
  Activation activation;
};

// y = act(x W + bias) + residual.
//
// `x` [rows, inner], `y` [rows, columns]; `packed` [ceil(columns / 16)][inner][16], 64-byte aligned, zeros
// beyond the last column. `y` may lie where `epilogue.residual` does, and must not overlap x. Every element
// is one chain of fused products and sums in the order of `inner`, so a row of y depends on nothing but its
// own row of x (and residual): not on the other rows, not on the threads. Needs Level::avx512.
void linear_f32(const LinearShape& shape, const float* x, const float* packed, const Epilogue& epilogue,
                float* y, const Parallel& parallel);

}  // namespace vlrt::kernels
