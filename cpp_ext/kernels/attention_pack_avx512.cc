#include <immintrin.h>

#include <algorithm>

#include "attention_pack.h"

namespace vlrt::kernels {

namespace {

__mmask8 first(std::size_t count) {
  return static_cast<__mmask8>((1u << count) - 1u);
}

// Eight vectors as the rows of a square: turned about its diagonal.
void transpose(__m256 (&rows)[kGroup]) {
  __m256 pairs[kGroup], fours[kGroup];
  for (std::size_t i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  for (std::size_t half = 0; half < 2; ++half) {
    const __m256* const pair = pairs + 4 * half;
    __m256* const four = fours + 4 * half;
    four[0] = _mm256_shuffle_ps(pair[0], pair[2], 0x44);
    four[1] = _mm256_shuffle_ps(pair[0], pair[2], 0xEE);
    four[2] = _mm256_shuffle_ps(pair[1], pair[3], 0x44);
    four[3] = _mm256_shuffle_ps(pair[1], pair[3], 0xEE);
  }
  for (std::size_t i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

void copy_columns(const float* source, const Grid& grid, float factor, float* target,
                  std::ptrdiff_t target_step, __mmask8 kept) {
  const __mmask8 loaded = first(grid.rows);
  for (std::size_t column = 0; column < grid.columns; ++column) {
    const __m256 values = _mm256_mul_ps(_mm256_maskz_loadu_ps(loaded, source), _mm256_set1_ps(factor));
    _mm256_mask_storeu_ps(target, kept, values);
    source += grid.column_step;
    target += target_step;
  }
}

void turn_rows(const float* source, const Grid& grid, float factor, float* target, std::ptrdiff_t target_step,
               __mmask8 kept) {
  for (std::size_t column = 0; column < grid.columns; column += kGroup) {
    const std::size_t columns = std::min(kGroup, grid.columns - column);
    __m256 rows[kGroup];
    for (std::size_t row = 0; row < kGroup; ++row) {
      const __mmask8 loaded = row < grid.rows ? first(columns) : __mmask8{0};
      const std::ptrdiff_t skipped = row < grid.rows ? static_cast<std::ptrdiff_t>(row) * grid.row_step : 0;
      rows[row] = _mm256_mul_ps(_mm256_maskz_loadu_ps(loaded, source + skipped), _mm256_set1_ps(factor));
    }
    transpose(rows);
    for (std::size_t i = 0; i < columns; ++i) {
      _mm256_mask_storeu_ps(target + static_cast<std::ptrdiff_t>(i) * target_step, kept, rows[i]);
    }
    source += kGroup;
    target += static_cast<std::ptrdiff_t>(kGroup) * target_step;
  }
}

void copy_each(const float* source, const Grid& grid, float factor, float* target, std::ptrdiff_t target_step,
               std::size_t filled) {
  for (std::size_t column = 0; column < grid.columns; ++column) {
    for (std::size_t row = 0; row < filled; ++row) {
      target[row] =
          row < grid.rows ? factor * source[static_cast<std::ptrdiff_t>(row) * grid.row_step] : 0.0f;
    }
    source += grid.column_step;
    target += target_step;
  }
}

}  // namespace

void interleave_avx512(const float* source, const Grid& grid, float factor, float* target,
                       std::ptrdiff_t target_step, bool keep) {
  const std::size_t filled = keep ? grid.rows : kGroup;
  if (grid.row_step == 1) {
    copy_columns(source, grid, factor, target, target_step, first(filled));
  } else if (grid.column_step == 1) {
    turn_rows(source, grid, factor, target, target_step, first(filled));
  } else {
    copy_each(source, grid, factor, target, target_step, filled);
  }
}

}  // namespace vlrt::kernels
