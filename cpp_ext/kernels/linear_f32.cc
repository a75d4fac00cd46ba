#include "linear_f32.h"

#include <algorithm>
#include <cstring>

#include "linear_f32_tile.h"
#include "vlrt/aligned.h"

namespace vlrt::kernels {
namespace {

// What a task has of x: so much that the second cache keeps it beside the panels that go by.
constexpr std::size_t kBlockBytes = std::size_t{256} << 10;
constexpr std::size_t kMostBlockTiles = 4;
// With so many blocks of rows a thread, all columns of a block are one task; with fewer, the columns are
// split too.
constexpr std::size_t kBlocksPerThread = 4;
constexpr std::size_t kTasksPerThread = 8;
// Panels of a task at least: in decoding as many as are read at once; else some groups, since a task's first
// group comes from memory while the others were fetched beside the products before.
constexpr std::size_t kFewestPanels = 4, kFewestPanelsPacked = 12;
constexpr std::size_t kTilesPerPacker = 4;  // fewer are not worth another thread

// So far ahead memory is asked for, in lines of a panel.
constexpr std::size_t kAhead = 128;

constexpr std::size_t ceil_div(std::size_t a, std::size_t b) {
  return (a + b - 1) / b;
}

// `total` things in `parts` runs, all of a length, give or take one.
struct Split {
  std::size_t total, parts;
  std::size_t begin(std::size_t part) const { return part * total / parts; }
  std::size_t size(std::size_t part) const { return begin(part + 1) - begin(part); }
};

Split in_parts_of(std::size_t total, std::size_t most) {
  return {total, std::max<std::size_t>(1, ceil_div(total, most))};
}

constexpr std::size_t packed_inner(std::size_t inner) {
  return std::max<std::size_t>(1, ceil_div(inner, kBlockInner)) * kBlockInner;
}

struct Range {
  std::size_t begin, size;
};

// Some rows, in tiles of at most `kMostRows`, as the products read them.
struct Rows {
  const float* x;
  std::size_t first_row;  // of y
  Split tiles;
  std::size_t inner;

  std::size_t most() const { return ceil_div(tiles.total, tiles.parts); }
  const float* tile(std::size_t index) const {
    return x + tiles.begin(index) * (most() > kRowsInPlace ? packed_inner(inner) : inner);
  }
};

// From [rows, inner] to [ceil(inner / 16)][rows][16]: a block of a row is one line, so packing only copies
// lines.
void pack_tile(const float* x, std::size_t rows, std::size_t inner, float* to) {
  std::size_t k = 0;
  for (; k + kBlockInner <= inner; k += kBlockInner)
    for (std::size_t row = 0; row < rows; ++row, to += kBlockInner)
      std::memcpy(to, x + row * inner + k, kBlockInner * sizeof(float));
  if (k == inner) return;
  for (std::size_t row = 0; row < rows; ++row, to += kBlockInner)
    std::memcpy(to, x + row * inner + k, (inner - k) * sizeof(float));
}

float* scratch(std::size_t floats) {
  static thread_local AlignedBuffer buffer;
  if (buffer.size() < floats * sizeof(float)) buffer = AlignedBuffer(floats * sizeof(float));
  return buffer.as<float>();
}

class Product {
 public:
  Product(const LinearShape& shape, const float* x, const float* packed, const Epilogue& epilogue, float* y)
      : shape_(shape),
        x_(x),
        packed_(packed),
        epilogue_(epilogue),
        y_(y),
        panels_(ceil_div(shape.columns, kPanelColumns)) {}

  void multiply(const Parallel& parallel) const {
    if (shape_.rows <= kRowsInPlace) return multiply(Rows{x_, 0, {shape_.rows, 1}, shape_.inner}, parallel);
    const std::size_t block_tiles =
        std::clamp<std::size_t>(kBlockBytes / (kMostRows * row_bytes()), 1, kMostBlockTiles);
    const std::size_t threads = parallel.threads();
    const Split blocks{shape_.rows,
                       ceil_div(ceil_div(shape_.rows, block_tiles * kMostRows), threads) * threads};
    if (blocks.parts >= kBlocksPerThread * threads) return multiply_by_blocks(blocks, parallel);
    multiply(pack({0, shape_.rows}, parallel), parallel);
  }

 private:
  std::size_t row_bytes() const { return packed_inner(shape_.inner) * sizeof(float); }

  // Into memory of this thread, until it packs again.
  Rows pack(Range rows, const Parallel& parallel) const {
    const Split tiles = in_parts_of(rows.size, kMostRows);
    const Split packers{tiles.parts,
                        std::min(ceil_div(tiles.parts, kTilesPerPacker), 2 * parallel.threads())};
    float* const to = scratch(rows.size * packed_inner(shape_.inner));
    parallel(packers.parts, [&](std::size_t part) {
      for (std::size_t tile = packers.begin(part); tile < packers.begin(part + 1); ++tile)
        pack_tile(x_ + (rows.begin + tiles.begin(tile)) * shape_.inner, tiles.size(tile), shape_.inner,
                  to + tiles.begin(tile) * packed_inner(shape_.inner));
    });
    return {to, rows.begin, tiles, shape_.inner};
  }

  void multiply_by_blocks(const Split& blocks, const Parallel& parallel) const {
    parallel(blocks.parts, [&](std::size_t block) {
      const Rows rows = pack({blocks.begin(block), blocks.size(block)}, serial());
      multiply(rows, {0, rows.tiles.parts}, {0, panels_});
    });
  }

  void multiply(const Rows& rows, const Parallel& parallel) const {
    const std::size_t fewest = rows.most() > kRowsInPlace ? kFewestPanelsPacked : kFewestPanels;
    const std::size_t wanted = kTasksPerThread * parallel.threads();
    const Split blocks = in_parts_of(rows.tiles.parts, kMostBlockTiles);
    const Split parts{panels_, std::clamp<std::size_t>(panels_ / fewest, 1, ceil_div(wanted, blocks.parts))};
    parallel(blocks.parts * parts.parts, [&](std::size_t task) {
      const std::size_t block = task / parts.parts, part = task % parts.parts;
      multiply(rows, {blocks.begin(block), blocks.size(block)}, {parts.begin(part), parts.size(part)});
    });
  }

  void multiply(const Rows& rows, Range tiles, Range panels) const {
    const Split groups = in_parts_of(panels.size, tile_panels(rows.most()));
    for (std::size_t group = 0; group < groups.parts; ++group) {
      const std::size_t next = std::min(group + 1, groups.parts - 1);
      const float* const upcoming = panel(panels.begin + groups.begin(next));
      for (std::size_t tile = 0; tile < tiles.size; ++tile) {
        F32Tile t = at(rows, tiles.begin + tile, panels.begin + groups.begin(group), groups.size(group));
        const bool cold = tile == 0 && (group == 0 || tiles.size == 1);
        t.fetch = cold         ? ahead(t.panels, upcoming)
                  : group == 0 ? share(upcoming, tile - 1, tiles.size - 1)
                               : share(upcoming, tile, tiles.size);
        linear_f32_tile(t);
      }
    }
  }

  // Panels that nobody has asked for: these themselves, a little ahead, and the next ones when they come to
  // an end.
  Fetch ahead(const float* panels, const float* upcoming) const {
    const std::size_t turn = shape_.inner / kBlockInner * kBlockInner;
    return {panels + kAhead * kPanelColumns, upcoming, kPanelColumns, turn < kAhead ? 0 : turn - kAhead};
  }

  // The tiles of a group fetch the next group together, so that memory is busy all the while.
  Fetch share(const float* upcoming, std::size_t part, std::size_t parts) const {
    const std::size_t step = kPanelColumns / parts;
    return {upcoming + part * step * shape_.inner, nullptr, step, shape_.inner};
  }

  const float* panel(std::size_t index) const { return packed_ + index * shape_.inner * kPanelColumns; }

  F32Tile at(const Rows& rows, std::size_t tile, std::size_t first_panel, std::size_t count) const {
    const std::size_t column = first_panel * kPanelColumns;
    const std::size_t origin = (rows.first_row + rows.tiles.begin(tile)) * shape_.columns + column;
    F32Tile t{};
    t.x = rows.tile(tile);
    t.panels = panel(first_panel);
    t.bias = epilogue_.bias == nullptr ? nullptr : epilogue_.bias + column;
    t.residual = epilogue_.residual == nullptr ? nullptr : epilogue_.residual + origin;
    t.y = y_ + origin;
    t.rows = rows.tiles.size(tile);
    t.inner = shape_.inner;
    t.panel_count = count;
    t.row_columns = shape_.columns;
    t.columns = shape_.columns - column;
    t.activation = epilogue_.activation;
    return t;
  }

  const LinearShape shape_;
  const float* x_;
  const float* packed_;
  const Epilogue epilogue_;
  float* y_;
  std::size_t panels_;
};

}  // namespace

void linear_f32(const LinearShape& shape, const float* x, const float* packed, const Epilogue& epilogue,
                float* y, const Parallel& parallel) {
  if (shape.rows == 0 || shape.columns == 0) return;
  Product(shape, x, packed, epilogue, y).multiply(parallel);
}

}  // namespace vlrt::kernels
