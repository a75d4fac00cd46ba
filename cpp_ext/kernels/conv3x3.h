// Convolutions of 3x3, stride 1 and padding 1, by minimal filtering.
#pragma once

#include "conv_shape.h"
#include "parallel.h"

namespace vlrt::kernels {

// y = act(conv(x, w) + bias + shift + residual), with a quarter of the direct form's products (Lavin and
// Gray, arXiv 1509.09308, section 4.1: F(4x4, 3x3), here at the points 0, +-5/8, +-3/2 and infinity, which
// lose three times less than 0, +-1, +-2: at most 1e-5 of the largest value over 2560 inputs).
//
// `x` [batch, inputs, height, width], `y` [batch, outputs, height, width]; `packed` [ceil(outputs /
// 16)][inputs][9][16], 64-byte aligned, zeros beyond the last output. Filters are transformed anew in every
// call, which costs a few percent of it and saves three times their size. `y` may lie where
// `epilogue.residual` does, and must not overlap x. The result depends neither on the threads nor on the
// other pictures. Needs Level::avx512.
void conv3x3_f32(const ConvShape& shape, const float* x, const float* packed, const ConvEpilogue& epilogue,
                 float* y, const Parallel& parallel);

}  // namespace vlrt::kernels
