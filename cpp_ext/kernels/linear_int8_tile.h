// The sums of products of one tile: at most twelve rows of bytes with one, two or four panels of weights.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vlrt::kernels {

inline constexpr std::size_t kInt8Panel = 16;
inline constexpr std::size_t kTileSums = 12 * 2 * kInt8Panel;  // the most a tile has

struct Int8Tile {
  const std::uint8_t* x;         // [steps][rows][4]
  const std::int8_t* panels[4];  // each [steps][16][4]
  std::size_t rows, panel_count, steps;
};

// How many panels one tile of so many rows can have: more read more places at once, fewer fit the registers.
inline constexpr std::size_t int8_tile_panels(std::size_t rows) {
  return rows <= 6 ? 4 : 2;
}

// sums [rows][panel_count * 16]; `panel_count` 1, 2 or (to six rows) 4.
void sum_products(const Int8Tile& tile, std::int32_t* sums);

}  // namespace vlrt::kernels
