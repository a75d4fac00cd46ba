// Rows of x as unsigned bytes, laid out as the products read them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "parallel.h"
#include "vlrt/aligned.h"

namespace vlrt::kernels {

struct RowScale {
  float scale;
  std::int32_t zero_point;
};

// To four rows [inner] that follow each other, in bytes: [ceil(inner / 4)][count][4], but that from each four
// bytes of the rows to the next are `stride` bytes. A row's scale and zero point are those that ONNX's
// DynamicQuantizeLinear gives it by itself; the scale of a row with a NaN is NaN, and one that would be 0 is
// 1 (as in onnxruntime).
void quantise_rows(const float* x, std::size_t count, std::size_t inner, std::size_t stride,
                   std::uint8_t* out, RowScale* scales);

// Rows [rows, inner] in tiles of at most `kTileRows`, all of a size give or take one row. A tile of R rows is
// [ceil(inner / 4)][R][4] bytes.
class QuantisedRows {
 public:
  static constexpr std::size_t kTileRows = 12;

  // Replaces what was held; memory only grows.
  void quantise(const float* x, std::size_t rows, std::size_t inner, const Parallel& parallel);

  std::size_t tiles() const { return tiles_; }
  std::size_t first_row(std::size_t tile) const { return tile * rows_ / tiles_; }
  std::size_t tile_rows(std::size_t tile) const { return first_row(tile + 1) - first_row(tile); }
  std::size_t most_rows() const { return (rows_ + tiles_ - 1) / tiles_; }  // of a tile
  std::size_t steps() const { return steps_; }                             // of four bytes, in a row
  std::size_t bytes() const { return rows_ * steps_ * 4; }
  const std::uint8_t* tile(std::size_t tile) const {
    return bytes_.as<std::uint8_t>() + first_row(tile) * steps_ * 4;
  }
  const RowScale* scales() const { return scales_.as<RowScale>(); }  // [rows]

 private:
  void reserve(std::size_t rows, std::size_t steps);
  void quantise_tile(const float* x, std::size_t inner, std::size_t tile);

  std::size_t rows_ = 0, tiles_ = 0, steps_ = 0;
  AlignedBuffer bytes_, scales_;
};

}  // namespace vlrt::kernels
