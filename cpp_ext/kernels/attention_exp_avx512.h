// Powers of two for softmax, sixteen at a time.
#pragma once

#include <limits>

#include "simd_avx512.h"

namespace vlrt::kernels {

// Scores are kept in units of log 2, so that weights are powers of two and need no further product.
inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kLowestScore = std::numeric_limits<float>::lowest();

// 2^x within 1e-7, relative; 0 below the range. The polynomial is the minimax one of degree 6 for the
// relative error of 2^f over |f| <= 1/2 (Remez exchange; 2e-9 before rounding).
VLRT_VECTOR __m512 exp2_ps(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 power = _mm512_set1_ps(1.5345812e-4f);
  power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(1.3399931e-3f));
  power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(9.6184891e-3f));
  power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(5.5503286e-2f));
  power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(2.4022646e-1f));
  power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(6.9314718e-1f));
  power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(power, whole);
}

// Never below the lowest finite score, so that the distance of two scores is a number; NaN stays NaN.
VLRT_VECTOR __m512 bounded_score(__m512 score) {
  return _mm512_max_ps(_mm512_set1_ps(kLowestScore), score);
}

}  // namespace vlrt::kernels
