// Sixteen floats at a time: what the kernels share. Only for sources named `*_avx512.cc`.
#pragma once

#include <immintrin.h>

#include <cstddef>

// Inlined always, so that no copy with AVX-512 in it can stand for one that runs elsewhere.
#if defined(_MSC_VER)
#define VLRT_VECTOR static __forceinline
#else
#define VLRT_VECTOR [[gnu::always_inline]] static inline
#endif

namespace vlrt::kernels {

inline constexpr std::size_t kLanes = 16;

// The first `count` lanes; all of them from 16 on.
VLRT_VECTOR __mmask16 first_lanes(std::size_t count) {
  return static_cast<__mmask16>(count >= kLanes ? 0xFFFFu : (1u << count) - 1u);
}

// Zeros beyond the first `count` lanes, which are not read.
VLRT_VECTOR __m512 load_first(const float* from, std::size_t count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), from);
}

VLRT_VECTOR void store_first(float* to, std::size_t count, __m512 value) {
  _mm512_mask_storeu_ps(to, first_lanes(count), value);
}

// Pairs of halves, so the order is fixed: ((0+8)+(4+12)) + … .
VLRT_VECTOR float sum_lanes(__m512 x) {
  return _mm512_reduce_add_ps(x);
}
VLRT_VECTOR float max_lanes(__m512 x) {
  return _mm512_reduce_max_ps(x);
}

// e^x to 1e-7 of itself; 0 from -104 down, infinity from 89 up, NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two pieces, Cody and Waite 1980); e^r = 1 + r + r^2 q(r),
// where q has the least greatest relative error (3.1e-9) of its degree, found by Lawson's reweighted least
// squares (1961).
VLRT_VECTOR __m512 exp_ps(__m512 x) {
  // NaN comes through: both take their second operand then.
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), _mm512_min_ps(_mm512_set1_ps(89.0f), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.442695041f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 q = _mm512_set1_ps(1.381459879e-03f);
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(8.368716575e-03f));
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(4.166838899e-02f));
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(1.666652113e-01f));
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(4.999999404e-01f));
  q = _mm512_fmadd_ps(_mm512_mul_ps(q, r), r, r);
  return _mm512_scalef_ps(_mm512_add_ps(q, _mm512_set1_ps(1.0f)), n);
}

// Phi(x) - 1/2 for x held within +-5.5, beyond which Phi is 0 or 1 to 2e-8: x q(u) with u = 2 x^2 / 5.5^2 -
// 1, so that q's argument lies within +-1 and its powers do not cancel. q is of degree 15 and has the least
// greatest error of x^2 q / max(|x|, 1) (7.3e-9), found as that of `exp_ps`.
VLRT_VECTOR __m512 normal_probability_from_half(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-5.5f), _mm512_min_ps(_mm512_set1_ps(5.5f), x));
  const __m512 u =
      _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(2.0f / (5.5f * 5.5f)), _mm512_set1_ps(-1.0f));
  __m512 q = _mm512_set1_ps(-2.265936346e-04f);
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(6.224876852e-04f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(-5.593170645e-04f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(7.474727463e-04f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(-2.382311272e-03f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(4.589674529e-03f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(-6.841615308e-03f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(1.024628896e-02f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(-1.499236748e-02f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(2.035919018e-02f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(-2.604927681e-02f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(3.207099438e-02f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(-3.879272193e-02f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(4.773759097e-02f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(-6.417234242e-02f));
  q = _mm512_fmadd_ps(q, u, _mm512_set1_ps(1.285519302e-01f));
  return _mm512_mul_ps(x, q);
}

}  // namespace vlrt::kernels
