#include "vlrt/elementwise.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "vlrt/clones.h"

namespace vlrt {

namespace {

VLRT_CLONES void divided_sum(float* out, const float* x, const float* y, std::size_t count, float a, float b,
                             float divisor) {
  for (std::size_t i = 0; i < count; ++i) out[i] = (a * x[i] + b * y[i]) / divisor;
}

VLRT_CLONES void plain_sum(float* out, const float* x, const float* y, std::size_t count, float a, float b) {
  for (std::size_t i = 0; i < count; ++i) out[i] = a * x[i] + b * y[i];
}

VLRT_CLONES float zero_if_finite(const float* values, std::size_t count) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::size_t i = 0; i < count; ++i) sum += values[i] * 0.0f;
  return sum;
}

// Split as in Cephes' `expf`: x = n ln 2 + r, a polynomial in r, n put into the exponent.
inline float exponential(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  x = std::min(std::max(x, -87.0f), 87.0f);
  const float shifted = x * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) << 23) + 0x3f800000u);
}

VLRT_CLONES void all_exponentials(float* out, const float* x, std::size_t count) {
#pragma omp simd
  for (std::size_t i = 0; i < count; ++i) out[i] = exponential(x[i]);
}

// Linear between neighbours, in single precision as `torch.quantile`. Reorders `values`.
float quantile(std::span<float> values, float ratio) {
  const float rank = ratio * static_cast<float>(values.size() - 1);
  const auto low = static_cast<std::size_t>(rank);
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(low);
  std::nth_element(values.begin(), middle, values.end());
  const float below = *middle, weight = rank - static_cast<float>(low);
  if (weight == 0.0f || low + 1 >= values.size()) return below;
  const float above = *std::min_element(middle + 1, values.end());
  return weight < 0.5f ? below + weight * (above - below) : above - (above - below) * (1.0f - weight);
}

}  // namespace

void convert(float* out, const float* x, const float* y, std::size_t count, const Conversion& conversion) {
  if (conversion.divisor == 1.0f) {
    plain_sum(out, x, y, count, conversion.x_weight, conversion.y_weight);
  } else {
    divided_sum(out, x, y, count, conversion.x_weight, conversion.y_weight, conversion.divisor);
  }
}

void clamp(float* values, std::size_t count, float bound) {
  for (std::size_t i = 0; i < count; ++i) values[i] = std::min(std::max(values[i], -bound), bound);
}

void threshold_dynamically(std::span<float> values, std::span<float> scratch, float ratio, float maximum) {
  for (std::size_t i = 0; i < values.size(); ++i) scratch[i] = std::fabs(values[i]);
  const float bound = std::clamp(quantile(scratch.first(values.size()), ratio), 1.0f, maximum);
  clamp(values.data(), values.size(), bound);
  if (bound == 1.0f) return;
  for (float& value : values) value /= bound;
}

bool all_finite(std::span<const float> values) {
  return zero_if_finite(values.data(), values.size()) == 0.0f;
}

double standard_deviation(std::span<const float> values) {
  double sum = 0.0, squares = 0.0;
  for (const float value : values) sum += static_cast<double>(value);
  const double mean = sum / static_cast<double>(values.size());
  for (const float value : values) {
    const double distance = static_cast<double>(value) - mean;
    squares += distance * distance;
  }
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

void exponentials(float* out, const float* x, std::size_t count) {
  all_exponentials(out, x, count);
}

}  // namespace vlrt
