// What the update rules are made of: passes over contiguous single precision.
#pragma once

#include <array>
#include <cstddef>
#include <span>

namespace vlrt {

struct Term {
  float weight;
  const float* values;
};

// out[i] = sum of weight * values[i], added in the order of the terms. `out` may be one of them.
template <std::size_t N>
void combine(float* out, std::size_t count, const std::array<Term, N>& terms) {
  for (std::size_t i = 0; i < count; ++i) {
    float sum = terms[0].weight * terms[0].values[i];
    for (std::size_t k = 1; k < N; ++k) sum += terms[k].weight * terms[k].values[i];
    out[i] = sum;
  }
}

// out[i] = (x_weight * x[i] + y_weight * y[i]) / divisor: every conversion between noise, velocity and clean
// sample is of this form.
struct Conversion {
  float x_weight;
  float y_weight;
  float divisor = 1.0f;
};
void convert(float* out, const float* x, const float* y, std::size_t count, const Conversion& conversion);

void clamp(float* values, std::size_t count, float bound);

// Dynamic thresholding (Saharia et al. 2022, section 2.3): the `ratio` quantile of the magnitudes, held
// between 1 and `maximum`, becomes 1. `scratch` has room for all values.
void threshold_dynamically(std::span<float> values, std::span<float> scratch, float ratio, float maximum);

bool all_finite(std::span<const float> values);

// Mean and unbiased deviation are taken in double.
double standard_deviation(std::span<const float> values);

// out[i] = exp(x[i]) to 2 ulp for |x| < 87, held there beyond.
void exponentials(float* out, const float* x, std::size_t count);

}  // namespace vlrt
