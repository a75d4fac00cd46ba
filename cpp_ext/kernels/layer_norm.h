// Layer normalisation.
#pragma once

#include <cstddef>

#include "parallel.h"

namespace vlrt::kernels {

struct LayerNormWeights {
  const float *scale, *bias;  // [width]
  float epsilon;
};

// y = (x - mean) / sqrt(variance + epsilon) * scale + bias with mean and variance of each row (Ba, Kiros and
// Hinton, arXiv 1607.06450, equation 3), for x and y [rows, width]. y may lie where x does. A row of y
// depends on its own row of x alone. Needs Level::avx512.
void layer_norm_f32(std::size_t rows, std::size_t width, const float* x, const LayerNormWeights& weights,
                    float* y, const Parallel& parallel);

}  // namespace vlrt::kernels
