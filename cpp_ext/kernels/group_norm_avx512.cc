#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "activations_avx512.h"
#include "group_norm.h"

namespace vlrt::kernels {
namespace {

using std::size_t;

constexpr size_t kPart = 4096;  // floats that stay in the first cache between their sum and their squares

__mmask16 lowest(size_t count) {
  return count >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1U << count) - 1U);
}

struct Moments {
  double mean = 0, squares = 0;  // squares: of the distances from the mean, added up
  double count = 0;

  // Chan, Golub and LeVeque 1983, equation 1.5: what two parts have in common.
  void add(const Moments& other) {
    const double all = count + other.count, apart = other.mean - mean;
    mean += apart * other.count / all;
    squares += other.squares + apart * apart * count * other.count / all;
    count = all;
  }
};

// Adds up `value(x)` in four lanes of vectors.
template <class Value>
double sum_of(const float* x, size_t count, Value&& value) {
  __m512 sums[4] = {};
  size_t at = 0;
  for (; at + 64 <= count; at += 64) {
    for (size_t v = 0; v < 4; ++v) sums[v] = _mm512_add_ps(sums[v], value(_mm512_loadu_ps(x + at + 16 * v)));
  }
  for (; at < count; at += 16) {
    const __mmask16 mask = lowest(count - at);
    sums[0] = _mm512_mask_add_ps(sums[0], mask, sums[0], value(_mm512_maskz_loadu_ps(mask, x + at)));
  }
  const __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
  return static_cast<double>(_mm512_reduce_add_ps(sum));
}

Moments moments_of(const float* x, size_t count) {
  Moments all;
  for (size_t first = 0; first < count; first += kPart) {
    const size_t part = std::min(kPart, count - first);
    const double mean = sum_of(x + first, part, [](__m512 v) { return v; }) / static_cast<double>(part);
    const __m512 middle = _mm512_set1_ps(static_cast<float>(mean));
    const double squares = sum_of(x + first, part, [middle](__m512 v) {
      const __m512 apart = _mm512_sub_ps(v, middle);
      return _mm512_mul_ps(apart, apart);
    });
    all.add({mean, squares, static_cast<double>(part)});
  }
  return all;
}

void write(Activation activation, const float* x, size_t count, float factor, float shift, float* y) {
  const __m512 factors = _mm512_set1_ps(factor), shifts = _mm512_set1_ps(shift);
  for (size_t at = 0; at < count; at += 16) {
    const __mmask16 mask = lowest(count - at);
    const __m512 value = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, x + at), factors, shifts);
    _mm512_mask_storeu_ps(y + at, mask, activate_ps(activation, value));
  }
}

}  // namespace

void group_norm_f32(const GroupNormShape& shape, const float* x, const GroupNormWeights& weights,
                    Activation activation, float* y, const Parallel& parallel) {
  const size_t channels = shape.channels / shape.groups, count = channels * shape.places;
  parallel(shape.batch * shape.groups, [&](size_t task) {
    const Moments moments = moments_of(x + task * count, count);
    const double factor =
        1 / std::sqrt(moments.squares / moments.count + static_cast<double>(weights.epsilon));
    for (size_t channel = 0; channel < channels; ++channel) {
      const size_t weight = task % shape.groups * channels + channel,
                   at = task * count + channel * shape.places;
      const double scale = static_cast<double>(weights.scale[weight]) * factor;
      const auto shift = static_cast<float>(static_cast<double>(weights.bias[weight]) - moments.mean * scale);
      write(activation, x + at, shape.places, static_cast<float>(scale), shift, y + at);
    }
  });
}

}  // namespace vlrt::kernels
