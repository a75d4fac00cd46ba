// One tile of a product in fp32: a few rows of x with a few panels of sixteen columns.
#pragma once

#include <cstddef>

#include "linear_f32.h"

namespace vlrt::kernels {

inline constexpr std::size_t kPanelColumns = 16;
inline constexpr std::size_t kBlockInner = 16;  // elements of a row that lie together when rows are packed
inline constexpr std::size_t kRowsInPlace = 6;  // as many are read where they are; more come packed
inline constexpr std::size_t kMostRows = 14;    // 14 x 2 panels fill the registers
inline constexpr std::size_t kMostPanels = 4;

// How many panels a tile of so many rows can have: more read more places of memory at once, fewer fit the
// registers.
constexpr std::size_t tile_panels(std::size_t rows) {
  if (rows <= kRowsInPlace) return 4;
  return rows <= 9 ? 3 : 2;
}

// Lines of every panel that are asked for on the way, long before they are read: `step` floats further at
// each element of `inner`; at the element `turn` it goes on at `then`.
struct Fetch {
  const float* at;
  const float* then;
  std::size_t step, turn;
};

struct F32Tile {
  const float* x;       // up to `kRowsInPlace` rows: [rows, inner]; else packed: [ceil(inner / 16)][rows][16]
  const float* panels;  // [panel_count][inner][16]
  Fetch fetch;
  const float* bias;      // of these columns, or null
  const float* residual;  // at this tile, or null
  float* y;               // at this tile
  std::size_t rows, inner, panel_count;
  std::size_t row_columns;  // from one row of y (and residual) to the next
  std::size_t columns;      // of y from here on: what is beyond is not written
  Activation activation;
};

void linear_f32_tile(const F32Tile& tile);

}  // namespace vlrt::kernels
