// What a model with shifted tokens reads of a cell's neighbours: half a state from above and from the left.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "vlrt/aligned.h"
#include "vlrt/row_moves.h"

namespace vlrt {

// Cells follow `origin` positions in rows of `columns`. A row's state is halved: the first half goes to the
// cell below, the second to the cell on the right; where there is no cell above or on the left, zeros are
// read.
struct NamedShift {
  std::string name;
  std::size_t row_bytes;
  std::size_t origin;
  std::size_t columns;
};

// `input` [max_rows, row_bytes] is what the next cell reads, `output` what the call leaves of its last token.
// Of each row the last row of the grid is kept, in a ring.
class ShiftedState {
 public:
  ShiftedState(const NamedShift& shift, std::size_t max_rows);

  // Fills the input for the token at `position`, before the call.
  void recall(std::size_t position, std::size_t rows);
  // Keeps the output of the token at `position`, after the call.
  void store(std::size_t position, std::size_t rows);
  void apply(std::span<const RowMove> moves);

  std::size_t row_bytes() const { return row_bytes_; }
  std::byte* input() { return input_.data(); }
  std::byte* output() { return output_.data(); }

 private:
  std::byte* kept(std::int32_t row);

  std::size_t row_bytes_, origin_, columns_;
  AlignedBuffer input_, output_, kept_, scratch_;
};

}  // namespace vlrt
