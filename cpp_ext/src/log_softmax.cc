#include "vlrt/log_softmax.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "vlrt/clones.h"

namespace vlrt {

namespace {

// exp(x) for x <= 0 to 2 ulp; below -87 the smallest normal number. Split as in Cephes' `expf`: x = n ln 2 +
// r, a polynomial in r, n put into the exponent. Plain arithmetic, so that the compiler vectorises it.
inline float exp_of_negative(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  x = x < -87.0f ? -87.0f : x;
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
  const std::uint32_t exponent = (std::bit_cast<std::uint32_t>(shifted) << 23) + 0x3f800000u;
  return p * std::bit_cast<float>(exponent);
}

VLRT_CLONES float largest(const float* x, std::size_t count) {
  float best = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : best)
  for (std::size_t i = 0; i < count; ++i) best = best < x[i] ? x[i] : best;
  return best;
}

VLRT_CLONES float block_maxima_of(const float* x, std::size_t count, float* maxima) {
  float best = -std::numeric_limits<float>::infinity();
  for (std::size_t begin = 0, block = 0; begin < count; begin += kBlock, ++block) {
    const std::size_t size = std::min(kBlock, count - begin);
    float top = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : top)
    for (std::size_t i = 0; i < size; ++i) top = top < x[begin + i] ? x[begin + i] : top;
    maxima[block] = top;
    best = best < top ? top : best;
  }
  return best;
}

VLRT_CLONES double sum_of_exponentials(const float* x, std::size_t count, float maximum) {
  constexpr std::size_t kChunk = 512;
  double total = 0.0;
  for (std::size_t begin = 0; begin < count; begin += kChunk) {
    const std::size_t size = std::min(kChunk, count - begin);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (std::size_t i = 0; i < size; ++i) sum += exp_of_negative(x[begin + i] - maximum);
    total += static_cast<double>(sum);
  }
  return total;
}

VLRT_CLONES void subtract_from(float* x, std::size_t count, float maximum, float log_sum) {
#pragma omp simd
  for (std::size_t i = 0; i < count; ++i) x[i] = (x[i] - maximum) - log_sum;
}

}  // namespace

float block_maxima(std::span<const float> x, std::span<float> maxima) {
  return block_maxima_of(x.data(), x.size(), maxima.data());
}

Normalizer normalize(std::span<const float> x, std::span<float> maxima) {
  const float maximum = maxima.empty() ? largest(x.data(), x.size()) : block_maxima(x, maxima);
  const double sum = sum_of_exponentials(x.data(), x.size(), maximum);
  return {maximum, static_cast<float>(std::log(sum))};
}

void subtract(std::span<float> x, const Normalizer& normalizer) {
  subtract_from(x.data(), x.size(), normalizer.maximum, normalizer.log_sum);
}

}  // namespace vlrt
