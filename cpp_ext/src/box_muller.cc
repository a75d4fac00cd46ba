#include "vlrt/box_muller.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>

#include "vlrt/clones.h"

namespace vlrt {

namespace {

inline float fused(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}

// Cephes' `logf` for x in (0, 1]: x = m 2^e with m in [sqrt(1/2), sqrt(2)), a polynomial in m - 1.
inline float log_of(float x) {
  x = std::max(x, std::numeric_limits<float>::min());
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const float half = std::bit_cast<float>((bits & 0x807fffffu) | 0x3f000000u);
  const bool small = half < std::numbers::sqrt2_v<float> / 2.0f;
  const float exponent =
      static_cast<float>(static_cast<std::int32_t>(bits >> 23) - 126) - (small ? 1.0f : 0.0f);
  const float m = half - 1.0f + (small ? half : 0.0f);
  const float square = m * m;
  float p = 7.0376836292e-2f;
  p = fused(p, m, -1.1514610310e-1f);
  p = fused(p, m, 1.1676998740e-1f);
  p = fused(p, m, -1.2420140846e-1f);
  p = fused(p, m, 1.4249322787e-1f);
  p = fused(p, m, -1.6668057665e-1f);
  p = fused(p, m, 2.0000714765e-1f);
  p = fused(p, m, -2.4999993993e-1f);
  p = fused(p, m, 3.3333331174e-1f);
  p = fused(p * m, square, exponent * -2.12194440e-4f);
  p = fused(-square, 0.5f, p);
  return fused(exponent, 0.693359375f, m + p);
}

struct SineCosine {
  float sine, cosine;
};

// Cephes' `sinf` and `cosf` for angles in [0, 2 pi): the nearest even multiple of pi / 4 is taken off, two
// polynomials in the rest change places and signs by octant.
inline SineCosine sine_cosine(float angle) {
  const auto octant = (static_cast<std::int32_t>(angle * 1.27323954473516f) + 1) & ~1;
  const auto whole = static_cast<float>(octant);
  float rest = fused(whole, -0.78515625f, angle);
  rest = fused(whole, -2.4187564849853515625e-4f, rest);
  rest = fused(whole, -3.77489497744594108e-8f, rest);
  const float square = rest * rest;
  float even = 2.443315711809948e-5f;
  even = fused(even, square, -1.388731625493765e-3f);
  even = fused(even, square, 4.166664568298827e-2f);
  even = fused(even * square, square, -(square * 0.5f)) + 1.0f;
  float odd = -1.9515295891e-4f;
  odd = fused(odd, square, 8.3321608736e-3f);
  odd = fused(odd, square, -1.6666654611e-1f);
  odd = fused(odd * square, rest, rest);
  const bool straight = (octant & 2) == 0;
  const auto bits = static_cast<std::uint32_t>(octant);
  const std::uint32_t sine_sign = (bits & 4u) << 29, cosine_sign = (~(bits - 2u) & 4u) << 29;
  const float sine = straight ? odd : even, cosine = straight ? even : odd;
  return {std::bit_cast<float>(std::bit_cast<std::uint32_t>(sine) ^ sine_sign),
          std::bit_cast<float>(std::bit_cast<std::uint32_t>(cosine) ^ cosine_sign)};
}

VLRT_CLONES void transform_blocks(float* values, std::size_t count) {
  for (std::size_t begin = 0; begin + 16 <= count; begin += 16) {
    float* block = values + begin;
#pragma omp simd
    for (std::size_t i = 0; i < 8; ++i) {
      const float radius = std::sqrt(-2.0f * log_of(1.0f - block[i]));
      const SineCosine at = sine_cosine(2.0f * std::numbers::pi_v<float> * block[i + 8]);
      block[i] = radius * at.cosine;
      block[i + 8] = radius * at.sine;
    }
  }
}

}  // namespace

void box_muller(std::span<float> uniforms) {
  transform_blocks(uniforms.data(), uniforms.size());
}

}  // namespace vlrt
