#include "vlrt/shifted.h"

#include <cstring>
#include <stdexcept>

namespace vlrt {

ShiftedState::ShiftedState(const NamedShift& shift, std::size_t max_rows)
    : row_bytes_(shift.row_bytes),
      origin_(shift.origin),
      columns_(shift.columns),
      input_(max_rows * shift.row_bytes),
      output_(max_rows * shift.row_bytes),
      kept_(max_rows * shift.columns * shift.row_bytes),
      scratch_(shift.columns * shift.row_bytes) {
  if (columns_ == 0 || row_bytes_ % 2 != 0)
    throw std::invalid_argument("a shift needs columns and two halves");
}

std::byte* ShiftedState::kept(std::int32_t row) {
  return row == kScratchRow ? scratch_.data()
                            : kept_.data() + static_cast<std::size_t>(row) * columns_ * row_bytes_;
}

void ShiftedState::recall(std::size_t position, std::size_t rows) {
  const std::size_t half = row_bytes_ / 2, cell = position < origin_ ? 0 : position - origin_;
  const std::size_t column = cell % columns_;
  for (std::size_t row = 0; row < rows; ++row) {
    std::byte* here = input_.data() + row * row_bytes_;
    const std::byte* ring = kept(static_cast<std::int32_t>(row));
    if (cell < columns_) {
      std::memset(here, 0, half);
    } else {
      std::memcpy(here, ring + column * row_bytes_, half);
    }
    if (column == 0) {
      std::memset(here + half, 0, half);
    } else {
      std::memcpy(here + half, ring + (column - 1) * row_bytes_ + half, half);
    }
  }
}

void ShiftedState::store(std::size_t position, std::size_t rows) {
  if (position < origin_) return;
  const std::size_t column = (position - origin_) % columns_;
  for (std::size_t row = 0; row < rows; ++row) {
    std::memcpy(kept(static_cast<std::int32_t>(row)) + column * row_bytes_, output_.data() + row * row_bytes_,
                row_bytes_);
  }
}

void ShiftedState::apply(std::span<const RowMove> moves) {
  for (const RowMove& move : moves) {
    std::memcpy(kept(move.destination), kept(move.source), columns_ * row_bytes_);
  }
}

}  // namespace vlrt
