#include "conv_transforms_avx512.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "activations_avx512.h"
#include "minimal_filtering_avx512.h"

namespace vlrt::kernels {
namespace {

using std::size_t;

// Lines that are written soon: stores to 36 places wait for one line after the other else.
inline void expect(float* line) {
  __builtin_prefetch(line, 1, 3);
}

constexpr size_t kAhead = 2 * 16;  // floats from a line that is written to the one that is fetched meanwhile

// The lowest `count` lanes; none below 0, all from 16.
inline __mmask16 lowest(std::ptrdiff_t count) {
  return count >= 16  ? __mmask16{0xffff}
         : count <= 0 ? __mmask16{0}
                      : static_cast<__mmask16>((1U << count) - 1U);
}

// A row of places from one left of the first tile on; what lies outside the picture is zero.
class Row {
 public:
  Row(size_t width, const TileRun& run) : at_(static_cast<std::ptrdiff_t>(run.column) - 1) {
    const auto left = static_cast<std::ptrdiff_t>(width) - at_;
    for (std::ptrdiff_t v = 0; v < kVectors; ++v) masks_[v] = lowest(left - 16 * v);
    if (at_ < 0) masks_[0] &= static_cast<__mmask16>(~1U);
  }

  // Column i of every tile's six to d[i].
  void tiles(const float* row, __m512 (&d)[kSide]) const {
    const float* at = row + at_;
    __m512 x[kVectors];
    for (int v = 0; v < kVectors; ++v) x[v] = _mm512_maskz_loadu_ps(masks_[v], at + 16 * v);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    const __m512 even_low = _mm512_permutex2var_ps(x[0], even, x[1]),
                 odd_low = _mm512_permutex2var_ps(x[0], odd, x[1]);
    const __m512 even_high = _mm512_permutex2var_ps(x[2], even, x[3]),
                 odd_high = _mm512_permutex2var_ps(x[2], odd, x[3]);
    d[0] = _mm512_permutex2var_ps(even_low, even, even_high);
    d[1] = _mm512_permutex2var_ps(odd_low, even, odd_high);
    d[2] = _mm512_permutex2var_ps(even_low, odd, even_high);
    d[3] = _mm512_permutex2var_ps(odd_low, odd, odd_high);
    const __m512i next = _mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
    const __m512i next_odd = _mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17);
    d[4] = _mm512_permutex2var_ps(d[0], next, x[4]);
    d[5] = _mm512_permutex2var_ps(d[1], next_odd, x[4]);
  }

 private:
  static constexpr int kVectors = 5;
  std::ptrdiff_t at_;
  __mmask16 masks_[kVectors];
};

// Four vectors of 16 tiles' columns to 64 places side by side.
inline void interleave(const __m512 (&y)[kTile], float* places) {
  const __m512 low_01 = _mm512_unpacklo_ps(y[0], y[1]), high_01 = _mm512_unpackhi_ps(y[0], y[1]);
  const __m512 low_23 = _mm512_unpacklo_ps(y[2], y[3]), high_23 = _mm512_unpackhi_ps(y[2], y[3]);
  const auto joined = [](__m512 a, __m512 b, bool high) {
    const __m512d x = _mm512_castps_pd(a), z = _mm512_castps_pd(b);
    return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(x, z) : _mm512_unpacklo_pd(x, z));
  };
  // Tiles 0 4 8 12, 1 5 9 13, 2 6 10 14, 3 7 11 15, each a quarter of a vector.
  const __m512 a = joined(low_01, low_23, false), b = joined(low_01, low_23, true);
  const __m512 c = joined(high_01, high_23, false), d = joined(high_01, high_23, true);
  const __m512 ab_low = _mm512_shuffle_f32x4(a, b, 0x44), ab_high = _mm512_shuffle_f32x4(a, b, 0xee);
  const __m512 cd_low = _mm512_shuffle_f32x4(c, d, 0x44), cd_high = _mm512_shuffle_f32x4(c, d, 0xee);
  _mm512_storeu_ps(places, _mm512_shuffle_f32x4(ab_low, cd_low, 0x88));
  _mm512_storeu_ps(places + 16, _mm512_shuffle_f32x4(ab_low, cd_low, 0xdd));
  _mm512_storeu_ps(places + 32, _mm512_shuffle_f32x4(ab_high, cd_high, 0x88));
  _mm512_storeu_ps(places + 48, _mm512_shuffle_f32x4(ab_high, cd_high, 0xdd));
}

// One channel's products [36][16] to places [4][4 * 16], the tiles side by side.
void places_of(const float* products, float* places) {
  __m512 rows[kTile][kSide];
  for (size_t column = 0; column < kSide; ++column) {
    __m512 m[kSide], y[kTile];
    for (size_t row = 0; row < kSide; ++row)
      m[row] = _mm512_load_ps(products + (row * kSide + column) * kBlockTiles);
    filtering::transform_output(m, y);
    for (size_t row = 0; row < kTile; ++row) rows[row][column] = y[row];
  }
  for (size_t row = 0; row < kTile; ++row) {
    __m512 y[kTile];
    filtering::transform_output(rows[row], y);
    interleave(y, places + row * kBlockTiles * kTile);
  }
}

}  // namespace

void transform_tiles(const ConvShape& shape, const TileBlock& block, const float* picture, size_t apart,
                     float* vectors, size_t stride) {
  __m512 columns[kSide][kSide] = {};
  for (const TileRun& run : block) {
    const Row row(shape.width, run);
    const __mmask16 mask =
        static_cast<__mmask16>(lowest(static_cast<std::ptrdiff_t>(run.count)) << run.first);
    const float* from = picture + run.picture * apart;
    for (size_t i = 0; i < kSide; ++i) {
      const size_t y = run.row + i;  // one too many: the tile begins one row above its output
      __m512 d[kSide] = {}, t[kSide];
      if (y != 0 && y <= shape.height) row.tiles(from + (y - 1) * shape.width, d);
      filtering::transform_input(d, t);
      for (size_t j = 0; j < kSide; ++j) {
        columns[i][j] = run.count == kBlockTiles ? t[j] : _mm512_mask_expand_ps(columns[i][j], mask, t[j]);
      }
    }
  }
  for (size_t j = 0; j < kSide; ++j) {
    __m512 d[kSide], t[kSide];
    for (size_t i = 0; i < kSide; ++i) d[i] = columns[i][j];
    filtering::transform_input(d, t);
    for (size_t i = 0; i < kSide; ++i) {
      float* line = vectors + (i * kSide + j) * stride;
      expect(line + kAhead);
      _mm512_store_ps(line, t[i]);
    }
  }
}

void transform_filters(size_t inputs, const float* filters, float* matrices, size_t stride) {
  for (size_t c = 0; c < inputs; ++c, filters += 9 * 16, matrices += 16) {
    __m512 columns[3][kSide];
    for (size_t j = 0; j < 3; ++j) {
      const float* at = filters + j * 16;
      filtering::transform_filter(_mm512_load_ps(at), _mm512_load_ps(at + 3 * 16),
                                  _mm512_load_ps(at + 6 * 16), columns[j]);
    }
    for (size_t i = 0; i < kSide; ++i) {
      __m512 t[kSide];
      filtering::transform_filter(columns[0][i], columns[1][i], columns[2][i], t);
      for (size_t j = 0; j < kSide; ++j) {
        float* line = matrices + (i * kSide + j) * stride;
        expect(line + kAhead);
        _mm512_store_ps(line, t[j]);
      }
    }
  }
}

void transform_products(const ConvShape& shape, const TileBlock& block, const float* products, size_t channel,
                        const ConvEpilogue& epilogue, float* y) {
  alignas(64) float places[kTile][kTile * kBlockTiles];
  places_of(products, places[0]);
  for (const TileRun& run : block) {
    const size_t plane = run.picture * shape.outputs + channel;
    const float bias = epilogue.bias ? epilogue.bias[channel] : 0.0F;
    const __m512 shift = _mm512_set1_ps(epilogue.shift ? bias + epilogue.shift[plane] : bias);
    const size_t rows = std::min(kTile, shape.height - run.row);
    const size_t width = std::min(kTile * run.count, shape.width - run.column);
    for (size_t i = 0; i < rows; ++i) {
      const size_t at = (plane * shape.height + run.row + i) * shape.width + run.column;
      for (size_t x = 0; x < width; x += 16) {
        const __mmask16 mask = lowest(static_cast<std::ptrdiff_t>(width - x));
        __m512 sum = _mm512_add_ps(shift, _mm512_maskz_loadu_ps(mask, places[i] + kTile * run.first + x));
        if (epilogue.residual)
          sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, epilogue.residual + at + x));
        _mm512_mask_storeu_ps(y + at + x, mask, activate_ps(epilogue.activation, sum));
      }
    }
  }
}

}  // namespace vlrt::kernels
