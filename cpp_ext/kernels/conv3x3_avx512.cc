#include <immintrin.h>

#include <algorithm>

#include "conv3x3.h"
#include "conv_products_avx512.h"
#include "conv_tiles.h"
#include "conv_transforms_avx512.h"
#include "scratch.h"

namespace vlrt::kernels {
namespace {

using std::size_t;

constexpr size_t kGroups = 2;    // of a task
constexpr size_t kInputs = 160;  // summed before the sum is put away: their filters fit a core's own cache,
                                 // and less is lost than in one long sum
constexpr size_t kPad = 16;      // floats between matrices: else they share lines of the cache
constexpr size_t kProducts = kGroup * kPlaces * kBlockTiles;  // of a group and a block

// Blocks that are computed together: many, as the filters are transformed for each lot; no more than fit a
// cache.
constexpr size_t kFewBlocks = 4, kManyBlocks = 10, kTilesBytes = std::size_t{12} << 20;

// What is done with the blocks [first, end) of tiles.
struct Convolution {
  const ConvShape& shape;
  const float *x, *packed;
  const ConvEpilogue& epilogue;
  float* y;
  const std::vector<TileBlock>& blocks;
  size_t first, end;
  float* tiles;  // [blocks][36][inputs][16]

  const float* filters(size_t group, size_t input) const {
    return packed + (group * shape.inputs + input) * 9 * kGroup;
  }
  size_t groups() const { return (shape.outputs + kGroup - 1) / kGroup; }
  size_t stride() const { return shape.inputs * kBlockTiles + kPad; }
  size_t block_stride() const { return kPlaces * stride(); }
};

// The products of one group and one block at one place, added to `m` [16][36][16] unless `first`.
void multiply(size_t inputs, const float* filters, const float* tiles, const float* next, float* m,
              bool first) {
  __m512 sums[kGroup];
  sum_products(inputs, filters, tiles, next, sums);
  for (size_t row = 0; row < kGroup; ++row, m += kPlaces * kBlockTiles) {
    _mm512_store_ps(m, first ? sums[row] : _mm512_add_ps(sums[row], _mm512_load_ps(m)));
  }
}

// The tiles of all blocks, inputs [from, to).
void gather(const Convolution& conv, size_t from, size_t to) {
  const size_t plane = conv.shape.plane();
  for (size_t c = from; c < to; ++c) {
    float* vectors = conv.tiles + c * kBlockTiles;
    for (size_t block = conv.first; block < conv.end; ++block, vectors += conv.block_stride()) {
      transform_tiles(conv.shape, conv.blocks[block], conv.x + c * plane, conv.shape.inputs * plane, vectors,
                      conv.stride());
    }
  }
}

// A range of inputs: filters [36][groups][inputs][16] of it, the matrices of a place side by side.
struct Part {
  size_t group, groups, from, count;
  const float* filters;

  size_t stride() const { return kGroup * count + kPad; }
};

// Adds the products of one block to m [groups][16][36][16].
void add_products(const Convolution& conv, const Part& part, size_t block, float* m) {
  const float* tiles = conv.tiles + (block - conv.first) * conv.block_stride() + part.from * kBlockTiles;
  const float* filters = part.filters;
  for (size_t place = 0; place < kPlaces; ++place, tiles += conv.stride()) {
    for (size_t g = 0; g < part.groups; ++g, filters += part.stride()) {
      // The tiles of the next place, and, with them in the cache, the filters that are transformed next.
      const float* coming = conv.filters(part.group + place % part.groups, part.from + part.count);
      const float* next = g == 0 ? tiles + conv.stride() : coming + place / part.groups * part.count * kGroup;
      multiply(part.count, filters, tiles, next, m + g * kProducts + place * kBlockTiles, part.from == 0);
    }
  }
}

// Groups [group, group + groups) of outputs of all blocks, to sums [blocks][groups][16][36][16].
void sum_blocks(const Convolution& conv, size_t group, size_t groups, float* filters, float* sums) {
  for (size_t from = 0; from < conv.shape.inputs; from += kInputs) {
    const Part part{group, groups, from, std::min(kInputs, conv.shape.inputs - from), filters};
    for (size_t g = 0; g < groups; ++g) {
      transform_filters(part.count, conv.filters(group + g, from), filters + g * part.stride(),
                        groups * part.stride());
    }
    for (size_t block = conv.first; block < conv.end; ++block) {
      add_products(conv, part, block, sums + (block - conv.first) * groups * kProducts);
    }
  }
}

void convolve(const Convolution& conv, size_t group) {
  thread_local Scratch filters, sums;
  const size_t groups = std::min(kGroups, conv.groups() - group),
               inputs = std::min(kInputs, conv.shape.inputs);
  const size_t outputs = std::min(groups * kGroup, conv.shape.outputs - group * kGroup);
  float* m = sums.room((conv.end - conv.first) * groups * kProducts);
  sum_blocks(conv, group, groups, filters.room(kPlaces * groups * (kGroup * inputs + kPad)), m);
  for (size_t block = conv.first; block < conv.end; ++block, m += groups * kProducts) {
    for (size_t row = 0; row < outputs; ++row) {
      transform_products(conv.shape, conv.blocks[block], m + row * kPlaces * kBlockTiles,
                         group * kGroup + row, conv.epilogue, conv.y);
    }
  }
}

}  // namespace

void conv3x3_f32(const ConvShape& shape, const float* x, const float* packed, const ConvEpilogue& epilogue,
                 float* y, const Parallel& parallel) {
  thread_local Scratch tiles;
  const std::vector<TileBlock> blocks = tile_blocks(shape);
  Convolution conv{shape, x, packed, epilogue, y, blocks, 0, 0, nullptr};
  const size_t fit = kTilesBytes / (conv.block_stride() * sizeof(float));
  const size_t together = std::min(std::clamp(fit, kFewBlocks, kManyBlocks), blocks.size());
  conv.tiles = tiles.room(together * conv.block_stride());
  constexpr size_t kChannels = 16;
  const size_t parts = (shape.inputs + kChannels - 1) / kChannels;
  for (; conv.first < blocks.size(); conv.first = conv.end) {
    conv.end = std::min(conv.first + together, blocks.size());
    parallel(parts, [&conv](size_t task) {
      gather(conv, task * kChannels, std::min((task + 1) * kChannels, conv.shape.inputs));
    });
    parallel((conv.groups() + kGroups - 1) / kGroups,
             [&conv](size_t task) { convolve(conv, task * kGroups); });
  }
}

}  // namespace vlrt::kernels
