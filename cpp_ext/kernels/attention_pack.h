// Groups of eight rows, interleaved: the form in which attention reads keys, values, queries and masks.
#pragma once

#include <cstddef>

namespace vlrt::kernels {

inline constexpr std::size_t kInterleaved = 8;

// A matrix of floats in memory.
struct Grid {
  std::size_t rows, columns;
  std::ptrdiff_t row_step, column_step;
};

// target[column * target_step + row] = factor * source(row, column) for at most eight rows; the rest of the
// eight are zeros, or, with `keep`, left as they are.
void interleave_avx512(const float* source, const Grid& grid, float factor, float* target,
                       std::ptrdiff_t target_step, bool keep = false);

}  // namespace vlrt::kernels
