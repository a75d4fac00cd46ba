// Convolutions of 1x1, stride 1: products with planes of channels.
#pragma once

#include "conv_shape.h"
#include "parallel.h"

namespace vlrt::kernels {

// y = act(conv(x, w) + bias + shift + residual).
//
// `x` [batch, inputs, height, width], `y` [batch, outputs, height, width]; `packed` [ceil(outputs /
// 16)][inputs][16], 64-byte aligned, zeros beyond the last output. `y` may lie where `epilogue.residual`
// does, and must not overlap x. The result depends neither on the threads nor on the other pictures. Needs
// Level::avx512.
void conv1x1_f32(const ConvShape& shape, const float* x, const float* packed, const ConvEpilogue& epilogue,
                 float* y, const Parallel& parallel);

}  // namespace vlrt::kernels
