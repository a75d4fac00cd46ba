// What becomes of a tile's sums of bytes: floats with bias, activation and residual.
#pragma once

#include "linear_f32.h"
#include "linear_int8_rows.h"

namespace vlrt::kernels {

// The weights' side of a product.
struct Int8Columns {
  std::size_t count;
  const float* scales;       // [count]
  const std::int32_t* sums;  // [count]: of the column's weights
};

// What one panel gave: rows [first_row, first_row + rows), columns [16 panel, 16 panel + 16).
struct Int8Panel {
  std::size_t first_row, rows, panel;
  const RowScale* scales;    // [rows]
  const std::int32_t* sums;  // of products: rows of 16, `stride` from each other, 64-byte aligned
  std::size_t stride;
};

// y = act(sx * sw * (panel.sums - zx * columns.sums) + bias) + residual, where the panel lies in y [all rows,
// columns].
void finish_panel(const Int8Panel& panel, const Int8Columns& columns, const Epilogue& epilogue, float* y);

}  // namespace vlrt::kernels
