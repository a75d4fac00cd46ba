#include <algorithm>
#include <cmath>

#include "layer_norm.h"
#include "simd_avx512.h"

namespace vlrt::kernels {

namespace {

constexpr std::size_t kSums = 4;
constexpr std::size_t kTaskFloats = 16384;  // some microseconds

// Adds up `value(x)`; lanes beyond the last are left out.
template <class Value>
VLRT_VECTOR float sum_of(const float* x, std::size_t count, Value&& value) {
  __m512 sums[kSums] = {};
  std::size_t at = 0;
  for (; at + kSums * kLanes <= count; at += kSums * kLanes) {
    for (std::size_t part = 0; part < kSums; ++part) {
      sums[part] = _mm512_add_ps(sums[part], value(_mm512_loadu_ps(x + at + part * kLanes)));
    }
  }
  for (; at < count; at += kLanes) {
    const __mmask16 mask = first_lanes(count - at);
    sums[0] = _mm512_mask_add_ps(sums[0], mask, sums[0], value(_mm512_maskz_loadu_ps(mask, x + at)));
  }
  return sum_lanes(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

void normalise_row(std::size_t width, const float* x, const LayerNormWeights& weights, float* y) {
  const auto count = static_cast<float>(width);
  const __m512 mean = _mm512_set1_ps(sum_of(x, width, [](__m512 v) { return v; }) / count);
  const float squares = sum_of(x, width, [mean](__m512 v) {
    const __m512 apart = _mm512_sub_ps(v, mean);
    return _mm512_mul_ps(apart, apart);
  });
  const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(squares / count + weights.epsilon));
  for (std::size_t at = 0; at < width; at += kLanes) {
    const std::size_t left = width - at;
    const __m512 apart = _mm512_mul_ps(_mm512_sub_ps(load_first(x + at, left), mean), factor);
    const __m512 scale = load_first(weights.scale + at, left), bias = load_first(weights.bias + at, left);
    store_first(y + at, left, _mm512_fmadd_ps(apart, scale, bias));
  }
}

}  // namespace

void layer_norm_f32(std::size_t rows, std::size_t width, const float* x, const LayerNormWeights& weights,
                    float* y, const Parallel& parallel) {
  const std::size_t most = std::max<std::size_t>(kTaskFloats / width, 1), tasks = (rows + most - 1) / most;
  parallel(tasks, [&](std::size_t task) {
    for (std::size_t row = rows * task / tasks; row < rows * (task + 1) / tasks; ++row) {
      normalise_row(width, x + row * width, weights, y + row * width);
    }
  });
}

}  // namespace vlrt::kernels
