// Where the 4x4 tiles of a convolution's pictures lie, in blocks of 16 that are computed together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "conv_shape.h"

namespace vlrt::kernels {

inline constexpr std::size_t kTile = 4;          // rows and columns of the output
inline constexpr std::size_t kSide = kTile + 2;  // and of the input
inline constexpr std::size_t kBlockTiles = 16;   // a vector

// Tiles side by side in one row of tiles of one picture.
struct TileRun {
  std::size_t picture, row, column;  // of the output's places: the first tile's upper left
  std::size_t first, count;          // in the block
};

// Up to 16 tiles, pictures one after the other, each row by row.
using TileBlock = std::vector<TileRun>;

// Splits the pictures into tiles; those at the lower and right border may reach beyond it.
inline std::vector<TileBlock> tile_blocks(const ConvShape& shape) {
  const std::size_t down = (shape.height + kTile - 1) / kTile, across = (shape.width + kTile - 1) / kTile;
  const std::size_t tiles = shape.batch * down * across;
  std::vector<TileBlock> blocks((tiles + kBlockTiles - 1) / kBlockTiles);
  for (std::size_t tile = 0; tile < tiles;) {
    const std::size_t line = tile / across, column = tile % across, first = tile % kBlockTiles;
    const std::size_t count = std::min(across - column, kBlockTiles - first);
    blocks[tile / kBlockTiles].push_back({line / down, line % down * kTile, column * kTile, first, count});
    tile += count;
  }
  return blocks;
}

}  // namespace vlrt::kernels
