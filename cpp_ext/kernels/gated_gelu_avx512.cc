#include <immintrin.h>

#include <algorithm>

#include "activations_avx512.h"
#include "gated_gelu.h"

namespace vlrt::kernels {
namespace {

using std::size_t;

constexpr size_t kTaskFloats = size_t{1} << 15;  // some tens of microseconds

void gate(size_t columns, const float* x, float* y) {
  for (size_t at = 0; at < columns; at += 16) {
    const size_t left = columns - at;
    const __mmask16 mask = left >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1U << left) - 1U);
    const __m512 gated = activate_ps(Activation::gelu, _mm512_maskz_loadu_ps(mask, x + columns + at));
    _mm512_mask_storeu_ps(y + at, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + at), gated));
  }
}

}  // namespace

void gated_gelu_f32(size_t rows, size_t columns, const float* x, float* y, const Parallel& parallel) {
  const size_t together = std::max(kTaskFloats / columns, size_t{1});
  parallel((rows + together - 1) / together, [=](size_t task) {
    const size_t end = std::min((task + 1) * together, rows);
    for (size_t row = task * together; row < end; ++row)
      gate(columns, x + row * 2 * columns, y + row * columns);
  });
}

}  // namespace vlrt::kernels
