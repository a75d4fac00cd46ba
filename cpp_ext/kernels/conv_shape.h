// What convolutions have in common: sizes, and what is done with the sums.
#pragma once

#include <cstddef>

#include "activations.h"

namespace vlrt::kernels {

struct ConvShape {
  std::size_t batch, inputs, outputs, height, width;

  std::size_t plane() const { return height * width; }
};

// What is added to a convolution, `bias` [outputs], `shift` [batch, outputs], `residual` as y, each of which
// may be null; and what is made of the sum.
struct ConvEpilogue {
  const float *bias, *shift, *residual;
  Activation activation;
};

}  // namespace vlrt::kernels
