// Attention of a tile of queries over the packed keys and values of one head.
#pragma once

#include <algorithm>
#include <cstddef>

#include "attention.h"
#include "attention_pack.h"

namespace vlrt::kernels {

// Queries are the lanes of vectors, three vectors at a time: with groups of eight keys, or of eight
// dimensions of the values, that makes 24 sums in registers, three loads and eight broadcasts for 24
// products.
inline constexpr std::size_t kTileVectors = 3;
inline constexpr std::size_t kTileQueries = 16 * kTileVectors;

// Keys between two looks at the maximum: weights of a block (48 KB) stay in the second cache.
inline constexpr std::size_t kBlockKeys = 128;

inline constexpr std::size_t rounded_up(std::size_t count, std::size_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// One head, as each thread packs it for itself: keys [keys / 8][width][8], values [value_width / 8][keys][8].
struct PackedHead {
  float *keys, *values;
};

// What a thread needs for one tile, each as [...][queries of the tile].
struct TileScratch {
  float* query;   // [width]
  float* scores;  // [kBlockKeys]
  float* mask;    // [kBlockKeys]
  float* sums;    // [value_width in whole groups]
};

// Tile `count` queries wide, from `first` on.
struct QueryTile {
  std::size_t batch, head, first, count;
};

void pack_head(const AttentionShape& shape, const Attended& attended, std::size_t batch, std::size_t head,
               const PackedHead& packed);

void attend_tile(const AttentionShape& shape, const Attended& attended, const QueryTile& tile,
                 const PackedHead& packed, const TileScratch& scratch);

}  // namespace vlrt::kernels
