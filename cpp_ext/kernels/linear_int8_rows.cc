#include "linear_int8_rows.h"

#include <algorithm>

namespace vlrt::kernels {

namespace {

constexpr std::size_t kGroupRows = 4;

void grow(AlignedBuffer& buffer, std::size_t bytes) {
  if (buffer.size() < bytes) buffer = AlignedBuffer(bytes);
}

}  // namespace

void QuantisedRows::reserve(std::size_t rows, std::size_t steps) {
  grow(bytes_, rows * steps * 4);
  grow(scales_, rows * sizeof(RowScale));
  rows_ = rows;
  steps_ = steps;
  tiles_ = (rows + kTileRows - 1) / kTileRows;
}

void QuantisedRows::quantise_tile(const float* x, std::size_t inner, std::size_t tile) {
  const std::size_t first = first_row(tile), rows = tile_rows(tile);
  std::uint8_t* out = bytes_.as<std::uint8_t>() + first * steps_ * 4;
  for (std::size_t row = 0; row < rows; row += kGroupRows) {
    quantise_rows(x + (first + row) * inner, std::min(rows - row, kGroupRows), inner, rows * 4, out + row * 4,
                  scales_.as<RowScale>() + first + row);
  }
}

void QuantisedRows::quantise(const float* x, std::size_t rows, std::size_t inner, const Parallel& parallel) {
  reserve(rows, (inner + 3) / 4);
  parallel(tiles_, [&](std::size_t tile) { quantise_tile(x, inner, tile); });
}

}  // namespace vlrt::kernels
