#include <algorithm>
#include <cmath>
#include <limits>

#include "linear_int8_rows.h"
#include "simd_avx512.h"

namespace vlrt::kernels {

namespace {

constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

struct Range {
  __m512 least = _mm512_setzero_ps(), most = _mm512_setzero_ps(), zeros = _mm512_setzero_ps();
};

VLRT_VECTOR void widen(Range& range, __m512 x) {
  range.least = _mm512_min_ps(range.least, x);
  range.most = _mm512_max_ps(range.most, x);
  // Stays NaN once there was one, or an infinity, which comparisons would pass over.
  range.zeros = _mm512_fmadd_ps(x, _mm512_setzero_ps(), range.zeros);
}

RowScale scale_of(const float* row, std::size_t inner) {
  Range even, odd;
  std::size_t at = 0;
  for (; at + 2 * kLanes <= inner; at += 2 * kLanes) {
    widen(even, _mm512_loadu_ps(row + at));
    widen(odd, _mm512_loadu_ps(row + at + kLanes));
  }
  for (; at < inner; at += kLanes) widen(even, load_first(row + at, inner - at));
  const float zeros = sum_lanes(_mm512_add_ps(even.zeros, odd.zeros));
  if (zeros != 0.0f) return {std::numeric_limits<float>::quiet_NaN(), 0};
  const float least = _mm512_reduce_min_ps(_mm512_min_ps(even.least, odd.least));
  float scale = (max_lanes(_mm512_max_ps(even.most, odd.most)) - least) / 255.0f;
  if (scale == 0.0f) scale = 1.0f;
  return {scale, static_cast<std::int32_t>(std::nearbyint(std::min(-least / scale, 255.0f)))};
}

struct Scaling {
  __m512 scale, inverse;
  __m512i zero_point;
};

VLRT_VECTOR __m512i shifted(__m512 steps, const Scaling& scaling) {
  return _mm512_add_epi32(_mm512_cvt_roundps_epi32(steps, kNearest), scaling.zero_point);
}

// The rounded quotients of the rows, as bytes: in each lane of 128 bits four of every row. A product with the
// inverse rounds as the quotient does, unless it lies so near the middle between two integers that its last
// bits decide (it is off by 256 * 3 / 2^24 at most).
template <std::size_t R>
VLRT_VECTOR __m512i bytes_of(const __m512 (&x)[R], const Scaling (&scaling)[R]) {
  __m512i steps[4] = {};
  unsigned doubtful = 0;
#pragma GCC unroll 4
  for (std::size_t row = 0; row < R; ++row) {
    const __m512 product = _mm512_mul_ps(x[row], scaling[row].inverse);
    const __m512 rounded = _mm512_roundscale_ps(product, kNearest);
    const __m512 off = _mm512_abs_ps(_mm512_sub_ps(product, rounded));
    doubtful |= _mm512_cmp_ps_mask(off, _mm512_set1_ps(0.4999f), _CMP_NLT_UQ);
    steps[row] = shifted(rounded, scaling[row]);
  }
  if (doubtful != 0) {
#pragma GCC unroll 4
    for (std::size_t row = 0; row < R; ++row) {
      steps[row] = shifted(_mm512_div_ps(x[row], scaling[row].scale), scaling[row]);
    }
  }
  return _mm512_packus_epi16(_mm512_packs_epi32(steps[0], steps[1]), _mm512_packs_epi32(steps[2], steps[3]));
}

// The first `count` lanes of 128 bits, the first R fours of each, `stride` bytes from each other.
template <std::size_t R>
VLRT_VECTOR void store_lanes(__m512i lanes, std::size_t count, std::size_t stride, std::uint8_t* out) {
  constexpr __mmask8 rows = (1u << R) - 1u;
  _mm_mask_storeu_epi32(out, rows, _mm512_castsi512_si128(lanes));
  if (count > 1) _mm_mask_storeu_epi32(out + stride, rows, _mm512_extracti32x4_epi32(lanes, 1));
  if (count > 2) _mm_mask_storeu_epi32(out + 2 * stride, rows, _mm512_extracti32x4_epi32(lanes, 2));
  if (count > 3) _mm_mask_storeu_epi32(out + 3 * stride, rows, _mm512_extracti32x4_epi32(lanes, 3));
}

template <std::size_t R>
void quantise(const float* x, std::size_t inner, const RowScale* scales, std::size_t stride,
              std::uint8_t* out) {
  Scaling scaling[R];
  for (std::size_t row = 0; row < R; ++row) {
    scaling[row] = {_mm512_set1_ps(scales[row].scale), _mm512_set1_ps(1.0f / scales[row].scale),
                    _mm512_set1_epi32(scales[row].zero_point)};
  }
  __m512 values[R];
  std::size_t at = 0;
  for (; at + kLanes <= inner; at += kLanes, out += 4 * stride) {
#pragma GCC unroll 4
    for (std::size_t row = 0; row < R; ++row) values[row] = _mm512_loadu_ps(x + row * inner + at);
    store_lanes<R>(bytes_of<R>(values, scaling), 4, stride, out);
  }
  if (at == inner) return;
  for (std::size_t row = 0; row < R; ++row) values[row] = load_first(x + row * inner + at, inner - at);
  store_lanes<R>(bytes_of<R>(values, scaling), (inner - at + 3) / 4, stride, out);
}

}  // namespace

void quantise_rows(const float* x, std::size_t count, std::size_t inner, std::size_t stride,
                   std::uint8_t* out, RowScale* scales) {
  for (std::size_t row = 0; row < count; ++row) scales[row] = scale_of(x + row * inner, inner);
  constexpr decltype(&quantise<1>) by_rows[] = {quantise<1>, quantise<2>, quantise<3>, quantise<4>};
  by_rows[count - 1](x, inner, scales, stride, out);
}

}  // namespace vlrt::kernels
