// The inner product of both convolutions: 16 outputs at 16 places.
#pragma once

#include <immintrin.h>

#include <cstddef>

namespace vlrt::kernels {

inline constexpr std::size_t kGroup = 16;  // outputs of a register tile, and what filters are packed by

// Sums over `inputs` of filters [inputs][16] times places [inputs][16], a vector of places for each output.
// As many lines from `next` on are fetched meanwhile.
inline void sum_products(std::size_t inputs, const float* filters, const float* places, const float* next,
                         __m512 (&sums)[kGroup]) {
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (std::size_t c = 0; c < inputs; ++c) {
    const __m512 vector = _mm512_load_ps(places + c * 16);
    _mm_prefetch(reinterpret_cast<const char*>(next + c * 16), _MM_HINT_T1);
    for (std::size_t row = 0; row < kGroup; ++row) {
      sums[row] = _mm512_fmadd_ps(_mm512_set1_ps(filters[c * kGroup + row]), vector, sums[row]);
    }
  }
}

}  // namespace vlrt::kernels
