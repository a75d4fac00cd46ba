#include <algorithm>

#include "attention_pack.h"
#include "simd_avx512.h"

namespace vlrt::kernels {

namespace {

VLRT_VECTOR __mmask8 first(std::size_t count) {
  return static_cast<__mmask8>((1u << count) - 1u);
}

// Eight vectors as the rows of a square: turned about its diagonal.
VLRT_VECTOR void transpose(__m256 (&rows)[kInterleaved]) {
  __m256 pairs[kInterleaved], fours[kInterleaved];
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

// Masked stores are slow, so whole groups go without.
VLRT_VECTOR void store(float* target, __m256 values, std::size_t kept) {
  if (kept == kInterleaved) {
    _mm256_storeu_ps(target, values);
  } else {
    _mm256_mask_storeu_ps(target, first(kept), values);
  }
}

VLRT_VECTOR __m256 load(const float* source, std::size_t count) {
  return count == kInterleaved ? _mm256_loadu_ps(source) : _mm256_maskz_loadu_ps(first(count), source);
}

// Rows lie far apart, where the processor does not look ahead by itself. Past the end nothing is fetched.
VLRT_VECTOR void fetch(const float* source) {
  _mm_prefetch(reinterpret_cast<const char*>(source), _MM_HINT_T0);
}

constexpr std::ptrdiff_t kColumnsAhead = 16;

void copy_columns(const float* source, const Grid& grid, float factor, float* target,
                  std::ptrdiff_t target_step, std::size_t kept) {
  for (std::size_t column = 0; column < grid.columns; ++column) {
    fetch(source + kColumnsAhead * grid.column_step);
    store(target, _mm256_mul_ps(load(source, grid.rows), _mm256_set1_ps(factor)), kept);
    source += grid.column_step;
    target += target_step;
  }
}

// At most eight columns.
VLRT_VECTOR void turn_square(const float* source, const Grid& grid, std::size_t columns, float factor,
                             float* target, std::ptrdiff_t target_step, std::size_t kept) {
  __m256 rows[kInterleaved];
#pragma GCC unroll 8
  for (std::size_t row = 0; row < kInterleaved; ++row) {
    rows[row] = _mm256_setzero_ps();
    if (row < grid.rows) {
      fetch(source + static_cast<std::ptrdiff_t>(kInterleaved) * grid.row_step);
      rows[row] = _mm256_mul_ps(load(source, columns), _mm256_set1_ps(factor));
      source += grid.row_step;
    }
  }
  transpose(rows);
#pragma GCC unroll 8
  for (std::size_t column = 0; column < kInterleaved; ++column) {
    if (column < columns) store(target, rows[column], kept);
    target += target_step;
  }
}

void turn_rows(const float* source, const Grid& grid, float factor, float* target, std::ptrdiff_t target_step,
               std::size_t kept) {
  Grid whole = grid;
  whole.rows = kInterleaved;
  for (std::size_t column = 0; column < grid.columns; column += kInterleaved) {
    const std::size_t columns = std::min(kInterleaved, grid.columns - column);
    if (grid.rows == kInterleaved && columns == kInterleaved) {
      turn_square(source, whole, kInterleaved, factor, target, target_step, kInterleaved);
    } else {
      turn_square(source, grid, columns, factor, target, target_step, kept);
    }
    source += kInterleaved;
    target += static_cast<std::ptrdiff_t>(kInterleaved) * target_step;
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
  const std::size_t filled = keep ? grid.rows : kInterleaved;
  if (grid.row_step == 1) {
    copy_columns(source, grid, factor, target, target_step, filled);
  } else if (grid.column_step == 1) {
    turn_rows(source, grid, factor, target, target_step, filled);
  } else {
    copy_each(source, grid, factor, target, target_step, filled);
  }
}

}  // namespace vlrt::kernels
