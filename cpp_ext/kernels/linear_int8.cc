#include "linear_int8.h"

#if defined(_MSC_VER)
#include <intrin.h>
#endif

#include <algorithm>

#include "linear_int8_finish.h"
#include "linear_int8_rows.h"
#include "linear_int8_tile.h"

namespace vlrt::kernels {

namespace {

// Bytes of weights in a task: some microseconds at least, as waking a thread takes.
constexpr std::size_t kLeastTask = std::size_t{64} << 10;
constexpr std::size_t kMostTask = std::size_t{512} << 10;
// Bytes of x in a task: so many stay in a core's own cache beside weights.
constexpr std::size_t kMostBlock = std::size_t{384} << 10;
constexpr std::size_t kPanelsAtOnce = 4, kFewTiles = 16;
constexpr std::size_t kBlockRows = 3 * QuantisedRows::kTileRows, kManyBlocks = 6;

void prefetch_for_write(const float* line) {
#if defined(__GNUC__)
  __builtin_prefetch(line, 1);
#else
  _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0);
#endif
}

std::size_t pieces(std::size_t whole, std::size_t piece) {
  return (whole + piece - 1) / piece;
}

struct Product {
  const QuantisedRows& x;
  const std::int8_t* packed;
  Int8Columns columns;
  const Epilogue& epilogue;
  float* y;

  std::size_t panel_bytes() const { return x.steps() * 4 * kInt8Panel; }
  std::size_t panels() const { return pieces(columns.count, kInt8Panel); }
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

// As many tasks as keep `threads` busy to the end, even where one is held up, and none too small. Where
// memory is what takes time, few: each reads on where it has begun.
Split split(const Product& product, std::size_t threads) {
  const std::size_t tiles = product.x.tiles(), panels = product.panels(),
                    bytes = panels * product.panel_bytes();
  const std::size_t most = std::max<std::size_t>(bytes * tiles / kLeastTask, 1);
  const std::size_t wanted = threads * pieces(bytes * std::min(tiles, kFewTiles), threads * kMostTask);
  const std::size_t parts = std::clamp<std::size_t>(wanted, 1, std::min(pieces(panels, kPanelsAtOnce), most));
  const std::size_t blocks = std::max(pieces(product.x.bytes(), kMostBlock), pieces(4 * threads, parts));
  const std::size_t most_blocks = std::clamp<std::size_t>(most / parts, 1, tiles);
  return {tiles, std::clamp<std::size_t>(blocks, 1, most_blocks), panels, parts};
}

// `count` panels, `apart` panels from each other.
struct Panels {
  std::size_t first, count, apart;

  std::size_t operator[](std::size_t index) const { return first + index * apart; }
};

// Asks for the lines of y that a tile will write: stores that miss wait for each other.
void expect(const Product& product, std::size_t tile, const Panels& panels) {
  for (std::size_t row = product.x.first_row(tile); row < product.x.first_row(tile + 1); ++row) {
    for (std::size_t index = 0; index < panels.count; ++index) {
      prefetch_for_write(product.y + row * product.columns.count + panels[index] * kInt8Panel);
    }
  }
}

void multiply_tile(const Product& product, std::size_t tile, const Panels& panels) {
  alignas(64) std::int32_t sums[kTileSums];
  const std::size_t row = product.x.first_row(tile), rows = product.x.tile_rows(tile);
  Int8Tile numbers{product.x.tile(tile), {}, rows, panels.count, product.x.steps()};
  for (std::size_t index = 0; index < panels.count; ++index) {
    numbers.panels[index] = product.packed + panels[index] * product.panel_bytes();
  }
  expect(product, tile, panels);
  sum_products(numbers, sums);
  const RowScale* scales = product.x.scales() + row;
  const std::size_t stride = panels.count * kInt8Panel;
  for (std::size_t index = 0; index < panels.count; ++index) {
    finish_panel({row, rows, panels[index], scales, sums + index * kInt8Panel, stride}, product.columns,
                 product.epilogue, product.y);
  }
}

// The panels are read at several places at once, and at each one after the other: memory is read in long
// runs.
void multiply(const Product& product, const Task& task) {
  std::size_t panel = task.first_panel;
  for (std::size_t count = int8_tile_panels(product.x.most_rows()); count != 0; count /= 2) {
    const std::size_t apart = (task.end_panel - panel) / count;
    for (std::size_t index = 0; index < apart; ++index) {
      for (std::size_t tile = task.first_tile; tile < task.end_tile; ++tile) {
        multiply_tile(product, tile, {panel + index, count, apart});
      }
    }
    panel += apart * count;
  }
}

QuantisedRows& scratch() {
  thread_local QuantisedRows rows;
  return rows;
}

// Some rows by themselves, on one thread: none waits for another's bytes of x.
void multiply_rows(const LinearShape& shape, const float* x, const std::int8_t* packed,
                   const Int8Columns& columns, const Epilogue& epilogue, float* y) {
  QuantisedRows& rows = scratch();
  rows.quantise(x, shape.rows, shape.inner, serial());
  const Product product{rows, packed, columns, epilogue, y};
  multiply(product, {0, rows.tiles(), 0, product.panels()});
}

}  // namespace

void linear_int8(const LinearShape& shape, const float* x, const std::int8_t* packed, const float* scales,
                 const std::int32_t* sums, const Epilogue& epilogue, float* y, const Parallel& parallel) {
  if (shape.rows == 0 || shape.columns == 0) return;
  const Int8Columns columns{shape.columns, scales, sums};
  const std::size_t blocks = pieces(shape.rows, kBlockRows);
  if (blocks >= kManyBlocks * parallel.threads()) {
    parallel(blocks, [&](std::size_t index) {
      const std::size_t first = shape.rows * index / blocks, end = shape.rows * (index + 1) / blocks;
      const float* residual = epilogue.residual ? epilogue.residual + first * shape.columns : nullptr;
      multiply_rows({end - first, shape.inner, shape.columns}, x + first * shape.inner, packed, columns,
                    {epilogue.bias, residual, epilogue.activation}, y + first * shape.columns);
    });
    return;
  }
  QuantisedRows& rows = scratch();
  rows.quantise(x, shape.rows, shape.inner, parallel);
  const Product product{rows, packed, columns, epilogue, y};
  const Split tasks = split(product, parallel.threads());
  parallel(tasks.blocks * tasks.parts, [&](std::size_t index) { multiply(product, tasks.task(index)); });
}

}  // namespace vlrt::kernels
