#include "linear_int8_rows.h"

#include <algorithm>

namespace vlrt::kernels {

namespace {

constexpr std::size_t kGroupRows = 4;
constexpr std::size_t kGroups = QuantisedRows::kTileRows / kGroupRows;
constexpr std::size_t kSerialFloats = 16384;  // so many are quantised before other threads have woken

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

void QuantisedRows::quantise_group(const float* x, std::size_t inner, std::size_t tile, std::size_t group) {
  const std::size_t rows = tile_rows(tile), from = group * kGroupRows, row = first_row(tile) + from;
  if (from >= rows) return;
  std::uint8_t* out = bytes_.as<std::uint8_t>() + (first_row(tile) * steps_ + from) * 4;
  quantise_rows(x + row * inner, std::min(rows - from, kGroupRows), inner, rows * 4, out,
                scales_.as<RowScale>() + row);
}

void QuantisedRows::quantise(const float* x, std::size_t rows, std::size_t inner, const Parallel& parallel) {
  reserve(rows, (inner + 3) / 4);
  const auto group = [&](std::size_t index) { quantise_group(x, inner, index / kGroups, index % kGroups); };
  (rows * inner <= kSerialFloats ? serial() : parallel)(tiles_ * kGroups, group);
}

}  // namespace vlrt::kernels
