#include "linear_f32.h"

#include <algorithm>
#include <cstring>

#include "linear_f32_tile.h"
#include "vlrt/aligned.h"

namespace vlrt::kernels {
namespace {

// Rows packed at a time: what the third cache keeps beside the weights.
constexpr std::size_t kSlabBytes = std::size_t{4} << 20;
// Rows of one task: what the second cache keeps beside the panels that go by.
constexpr std::size_t kBlockBytes = std::size_t{256} << 10;
constexpr std::size_t kTasksPerThread = 16;
constexpr std::size_t kFewestPanels = 4;

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

// Rows in tiles of at most `kMostRows`, each as the products read it.
struct Rows {
  const float* x;
  Split tiles;
  std::size_t inner;

  std::size_t most() const { return ceil_div(tiles.total, tiles.parts); }
};

// From [rows, inner] to [ceil(inner / 16)][rows][16]: a block of a row is one line, so packing only copies
// lines.
void pack_tile(const float* x, std::size_t rows, std::size_t inner, float* to) {
  for (std::size_t k = 0; k < inner; k += kBlockInner) {
    const std::size_t count = std::min(kBlockInner, inner - k);
    for (std::size_t row = 0; row < rows; ++row, to += kBlockInner)
      std::memcpy(to, x + row * inner + k, count * sizeof(float));
  }
}

float* scratch(std::size_t floats) {
  static thread_local AlignedBuffer buffer;
  if (buffer.size() < floats * sizeof(float)) buffer = AlignedBuffer(floats * sizeof(float));
  return buffer.as<float>();
}

class Product {
 public:
  Product(const LinearShape& shape, const float* packed, const Epilogue& epilogue, float* y)
      : shape_(shape),
        packed_(packed),
        epilogue_(epilogue),
        y_(y),
        panels_(ceil_div(shape.columns, kPanelColumns)) {}

  // Rows `first_row` on, by the threads there are.
  void multiply(const Rows& rows, std::size_t first_row, const Parallel& parallel) const {
    const std::size_t tile_bytes = rows.most() * packed_inner(rows.inner) * sizeof(float);
    const Split blocks =
        in_parts_of(rows.tiles.parts, std::clamp<std::size_t>(kBlockBytes / tile_bytes, 1, 4));
    const std::size_t wanted = ceil_div(kTasksPerThread * parallel.threads(), blocks.parts);
    const Split parts{panels_, std::clamp<std::size_t>(panels_ / kFewestPanels, 1, wanted)};
    parallel(blocks.parts * parts.parts, [&](std::size_t task) {
      const std::size_t block = task / parts.parts, part = task % parts.parts;
      multiply(rows, first_row, {blocks.begin(block), blocks.size(block)},
               {parts.begin(part), parts.size(part)});
    });
  }

 private:
  struct Range {
    std::size_t begin, size;
  };

  void multiply(const Rows& rows, std::size_t first_row, Range tiles, Range panels) const {
    const Split groups = in_parts_of(panels.size, tile_panels(rows.most()));
    for (std::size_t group = 0; group < groups.parts; ++group) {
      const std::size_t next = group + 1 < groups.parts ? group + 1 : group;
      for (std::size_t tile = tiles.begin; tile < tiles.begin + tiles.size; ++tile) {
        const bool last = tile + 1 == tiles.begin + tiles.size;
        F32Tile t = at(rows, first_row, tile, panels.begin + groups.begin(group), groups.size(group));
        t.from_memory = tile == tiles.begin;
        if (last) t.upcoming = packed_ + (panels.begin + groups.begin(next)) * shape_.inner * kPanelColumns;
        linear_f32_tile(t);
      }
    }
  }

  F32Tile at(const Rows& rows, std::size_t first_row, std::size_t tile, std::size_t panel,
             std::size_t count) const {
    const std::size_t row = rows.tiles.begin(tile), column = panel * kPanelColumns;
    const std::size_t origin = (first_row + row) * shape_.columns + column;
    F32Tile t{};
    t.x = rows.x + row * (rows.most() > kRowsInPlace ? packed_inner(rows.inner) : rows.inner);
    t.panels = t.upcoming = packed_ + panel * shape_.inner * kPanelColumns;
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
  const float* packed_;
  const Epilogue epilogue_;
  float* y_;
  std::size_t panels_;
};

}  // namespace

void linear_f32(const LinearShape& shape, const float* x, const float* packed, const Epilogue& epilogue,
                float* y, const Parallel& parallel) {
  if (shape.rows == 0 || shape.columns == 0) return;
  const Product product(shape, packed, epilogue, y);
  if (shape.rows <= kRowsInPlace) return product.multiply({x, {shape.rows, 1}, shape.inner}, 0, parallel);
  const std::size_t row_floats = packed_inner(shape.inner);
  const std::size_t slab_rows = std::max(kSlabBytes / (row_floats * sizeof(float)), 4 * kMostRows);
  const Split slabs = in_parts_of(shape.rows, slab_rows);
  float* const copy = scratch(ceil_div(shape.rows, slabs.parts) * row_floats);
  for (std::size_t slab = 0; slab < slabs.parts; ++slab) {
    const std::size_t first = slabs.begin(slab);
    const Split tiles = in_parts_of(slabs.size(slab), kMostRows);
    const Split packers{tiles.parts, tiles.parts < 4 ? 1 : std::min(tiles.parts, 2 * parallel.threads())};
    parallel(packers.parts, [&](std::size_t part) {
      for (std::size_t tile = packers.begin(part); tile < packers.begin(part + 1); ++tile)
        pack_tile(x + (first + tiles.begin(tile)) * shape.inner, tiles.size(tile), shape.inner,
                  copy + tiles.begin(tile) * row_floats);
    });
    product.multiply({copy, tiles, shape.inner}, first, parallel);
  }
}

}  // namespace vlrt::kernels
