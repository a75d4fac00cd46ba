// Group normalisation, and an activation behind it.
#pragma once

#include <cstddef>

#include "activations.h"
#include "parallel.h"

namespace vlrt::kernels {

// `groups` divides `channels`; `places`: of a picture, height times width.
struct GroupNormShape {
  std::size_t batch, channels, places, groups;
};

struct GroupNormWeights {
  const float *scale, *bias;  // [channels]
  float epsilon;
};

// y = act((x - mean) / sqrt(variance + epsilon) * scale + bias) with mean and variance of each picture's
// groups of channels (Wu and He, arXiv 1803.08494, equation 1), for x and y [batch, channels, places]. y may
// lie where x does. The result depends on neither the threads nor the other pictures. Needs Level::avx512.
void group_norm_f32(const GroupNormShape& shape, const float* x, const GroupNormWeights& weights,
                    Activation activation, float* y, const Parallel& parallel);

}  // namespace vlrt::kernels
