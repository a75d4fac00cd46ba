#include "linear_int8.h"

#include <algorithm>

#include "linear_int8_finish.h"
#include "linear_int8_rows.h"
#include "linear_int8_tile.h"

namespace vlrt::kernels {

namespace {

constexpr std::size_t kLeastTask = std::size_t{64}
                                   << 10;  // bytes of weights: some microseconds, as waking a thread takes
constexpr std::size_t kMostTask = std::size_t{256} << 10;
constexpr std::size_t kMostBlock = std::size_t{384}
                                   << 10;  // bytes of x: stay in a core's own cache beside weights
constexpr std::size_t kPanelsAtOnce = 4;

std::size_t pieces(std::size_t whole, std::size_t piece) {
  return (whole + piece - 1) / piece;
}

struct Product {
  const QuantisedRows& x;
  const std::int8_t* packed;
  Int8Columns columns;
  const Epilogue& epilogue;
  float* y;

  std::size_t panel_bytes() const { return x.steps() * 4 * kPanelColumns; }
  std::size_t panels() const { return pieces(columns.count, kPanelColumns); }
};

// A rectangle of tiles of x and panels of weights.
struct Task {
  std::size_t first_tile, end_tile, first_panel, end_panel;
};

// How tiles (in `blocks`) and panels (in `parts`) are spread over tasks.
struct Split {
  std::size_t tiles, blocks, panels, parts;

  Task task(std::size_t index) const {
    const std::size_t block = index / parts, part = index % parts, groups = pieces(panels, kPanelsAtOnce);
    return {tiles * block / blocks, tiles * (block + 1) / blocks, groups * part / parts * kPanelsAtOnce,
            std::min(groups * (part + 1) / parts * kPanelsAtOnce, panels)};
  }
};

// As many tasks as keep `threads` busy to the end, even where one is held up, and none too small.
Split split(const Product& product, std::size_t threads) {
  const std::size_t tiles = product.x.tiles(), panels = product.panels();
  const std::size_t bytes = panels * product.panel_bytes(),
                    most = std::max<std::size_t>(bytes * tiles / kLeastTask, 1);
  const std::size_t wanted = threads * pieces(bytes * std::min<std::size_t>(tiles, 8), threads * kMostTask);
  const std::size_t parts = std::clamp<std::size_t>(wanted, 1, std::min(pieces(panels, kPanelsAtOnce), most));
  const std::size_t blocks = std::max(pieces(product.x.bytes(), kMostBlock), pieces(4 * threads, parts));
  return {tiles, std::clamp<std::size_t>(blocks, 1, std::min(tiles, std::max<std::size_t>(most / parts, 1))),
          panels, parts};
}

// Tile `tile` times `count` panels, `apart` panels from each other.
void multiply_tile(const Product& product, std::size_t tile, std::size_t panel, std::size_t count,
                   std::size_t apart) {
  alignas(64) std::int32_t sums[kTileSums];
  const std::size_t row = product.x.first_row(tile), rows = product.x.tile_rows(tile);
  Int8Tile numbers{product.x.tile(tile), {}, rows, count, product.x.steps()};
  for (std::size_t index = 0; index < count; ++index) {
    numbers.panels[index] = product.packed + (panel + index * apart) * product.panel_bytes();
  }
  sum_products(numbers, sums);
  for (std::size_t index = 0; index < count; ++index) {
    const Int8Panel done{row,
                         rows,
                         panel + index * apart,
                         product.x.scales() + row,
                         sums + index * kPanelColumns,
                         count * kPanelColumns};
    finish_panel(done, product.columns, product.epilogue, product.y);
  }
}

// The panels are read at several places at once, and at each one after the other: memory is read in long
// runs.
void multiply(const Product& product, const Task& task) {
  std::size_t panel = task.first_panel;
  for (std::size_t count = tile_panels(product.x.most_rows()); count != 0; count /= 2) {
    const std::size_t apart = (task.end_panel - panel) / count;
    for (std::size_t index = 0; index < apart; ++index) {
      for (std::size_t tile = task.first_tile; tile < task.end_tile; ++tile) {
        multiply_tile(product, tile, panel + index, count, apart);
      }
    }
    panel += apart * count;
  }
}

QuantisedRows& scratch() {
  thread_local QuantisedRows rows;
  return rows;
}

}  // namespace

void linear_int8(const LinearShape& shape, const float* x, const std::int8_t* packed, const float* scales,
                 const std::int32_t* sums, const Epilogue& epilogue, float* y, const Parallel& parallel) {
  if (shape.rows == 0 || shape.columns == 0) return;
  QuantisedRows& rows = scratch();
  rows.quantise(x, shape.rows, shape.inner, parallel);
  const Product product{rows, packed, {shape.columns, scales, sums}, epilogue, y};
  const Split tasks = split(product, parallel.threads());
  parallel(tasks.blocks * tasks.parts, [&](std::size_t index) { multiply(product, tasks.task(index)); });
}

}  // namespace vlrt::kernels
