// The transforms of F(4x4, 3x3) along one axis, on 16 tiles, channels or filters at once.
//
// With the points 0, +-a, +-b and infinity (Toom and Cook's construction; Lavin and Gray, arXiv 1509.09308,
// section 5), a = 5/8 and b = 3/2: all factors but the filters' are exact.
#pragma once

#include <immintrin.h>

#include "conv_tiles.h"

namespace vlrt::kernels::filtering {

inline constexpr float kA = 0.625F, kB = 1.5F, kA2 = kA * kA, kB2 = kB * kB;

inline __m512 times(float factor, __m512 x) {
  return _mm512_mul_ps(_mm512_set1_ps(factor), x);
}

inline __m512 plus(float factor, __m512 x, __m512 y) {
  return _mm512_fmadd_ps(_mm512_set1_ps(factor), x, y);
}

// Six places of the input, d, to six factors.
inline void transform_input(const __m512 (&d)[kSide], __m512 (&t)[kSide]) {
  t[0] = plus(kA2 * kB2, d[0], plus(-(kA2 + kB2), d[2], d[4]));
  t[5] = plus(kA2 * kB2, d[1], plus(-(kA2 + kB2), d[3], d[5]));
  const __m512 even_a = plus(-kB2, d[2], d[4]), odd_a = plus(-kB2, d[1], d[3]);
  t[1] = plus(kA, odd_a, even_a);
  t[2] = plus(-kA, odd_a, even_a);
  const __m512 even_b = plus(-kA2, d[2], d[4]), odd_b = plus(-kA2, d[1], d[3]);
  t[3] = plus(kB, odd_b, even_b);
  t[4] = plus(-kB, odd_b, even_b);
}

// Three taps of a filter, g, to six factors.
inline void transform_filter(__m512 g0, __m512 g1, __m512 g2, __m512 (&t)[kSide]) {
  constexpr double a2 = kA2, b2 = kB2, a = kA, b = kB;
  constexpr double at_a = 1 / (2 * a2 * (a2 - b2)), at_b = 1 / (2 * b2 * (b2 - a2));
  t[0] = times(static_cast<float>(1 / (a2 * b2)), g0);
  t[5] = g2;
  const __m512 even_a = plus(static_cast<float>(at_a * a2), g2, times(static_cast<float>(at_a), g0));
  t[1] = plus(static_cast<float>(at_a * a), g1, even_a);
  t[2] = plus(static_cast<float>(-at_a * a), g1, even_a);
  const __m512 even_b = plus(static_cast<float>(at_b * b2), g2, times(static_cast<float>(at_b), g0));
  t[3] = plus(static_cast<float>(at_b * b), g1, even_b);
  t[4] = plus(static_cast<float>(-at_b * b), g1, even_b);
}

// Six products, m, to four places of the output.
inline void transform_output(const __m512 (&m)[kSide], __m512 (&y)[kTile]) {
  const __m512 even_a = _mm512_add_ps(m[1], m[2]), odd_a = _mm512_sub_ps(m[1], m[2]);
  const __m512 even_b = _mm512_add_ps(m[3], m[4]), odd_b = _mm512_sub_ps(m[3], m[4]);
  y[0] = _mm512_add_ps(_mm512_add_ps(m[0], even_a), even_b);
  y[1] = plus(kB, odd_b, times(kA, odd_a));
  y[2] = plus(kB2, even_b, times(kA2, even_a));
  y[3] = plus(kB2 * kB, odd_b, plus(kA2 * kA, odd_a, m[5]));
}

}  // namespace vlrt::kernels::filtering
