// Activations of sixteen floats, good to 2e-7 of max(|x|, 1). Only for sources named `*_avx512.cc`.
#pragma once

#include "activations.h"
#include "simd_avx512.h"

namespace vlrt::kernels {

// x sigmoid(of)
VLRT_VECTOR __m512 times_sigmoid_ps(__m512 x, __m512 of) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(x, _mm512_add_ps(one, exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), of))));
}

VLRT_VECTOR __m512 gelu_ps(__m512 x) {
  // Below -5.5 exactly -0, not |x| times what is left of a rounded 1/2 - 1/2; NaN is not below.
  const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-5.5f), _CMP_NLT_UQ);
  const __m512 phi = _mm512_add_ps(normal_probability_from_half(x), _mm512_set1_ps(0.5f));
  return _mm512_mul_ps(x, _mm512_maskz_mov_ps(kept, phi));
}

VLRT_VECTOR __m512 gelu_tanh_ps(__m512 x) {
  // 2 sqrt(2 / pi) x (1 + 0.044715 x^2); 0.5 (1 + tanh(z)) = sigmoid(2 z)
  const __m512 square = _mm512_mul_ps(x, x);
  const __m512 factor =
      _mm512_fmadd_ps(square, _mm512_set1_ps(7.135481283e-02f), _mm512_set1_ps(1.595769122f));
  return times_sigmoid_ps(x, _mm512_mul_ps(x, factor));
}

VLRT_VECTOR __m512 activate_ps(Activation activation, __m512 x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return _mm512_max_ps(_mm512_setzero_ps(), x);
    case Activation::gelu:
      return gelu_ps(x);
    case Activation::gelu_tanh:
      return gelu_tanh_ps(x);
    case Activation::quick_gelu:
      return times_sigmoid_ps(x, _mm512_mul_ps(x, _mm512_set1_ps(1.702f)));
    case Activation::silu:
      return times_sigmoid_ps(x, x);
  }
  return x;
}

}  // namespace vlrt::kernels
