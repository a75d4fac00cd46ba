// The tensors that live between decoder steps, each allocated once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vlrt/aligned.h"
#include "vlrt/row_moves.h"

namespace vlrt {

struct KvShape {
  std::size_t max_rows;
  std::size_t heads;
  std::size_t max_length;
  std::size_t head_dim;
  std::size_t element_bytes;
};

// An in-place attention cache [max_rows, heads, max_length, head_dim] of any element size. Only filled
// positions are ever copied: per head the prefix, the rest of a row is left as it is.
class KvCache {
 public:
  explicit KvCache(const KvShape& shape);

  // Does planned moves; `lengths[r]` is the number of filled positions of row r before them.
  void apply(std::span<const RowMove> moves, std::span<const std::int32_t> lengths);

  // new[r] = old[parents[r]]; touches only rows that changed parent.
  void reorder(std::span<const std::int32_t> parents, std::span<const std::int32_t> lengths);

  // Copies the first `length` positions of row `source` to rows [first, first + count).
  void broadcast(std::size_t source, std::size_t first, std::size_t count, std::size_t length);

  // Copies `count` positions of a row of `source` (another cache, or other positions of this one) from `from`
  // on to the same row here from `to` on.
  void copy_positions(const KvCache& source, std::size_t row, std::size_t from, std::size_t to,
                      std::size_t count);

  const KvShape& shape() const { return shape_; }
  std::size_t row_bytes() const { return shape_.heads * head_bytes(); }
  std::byte* data() { return rows_.data(); }

 private:
  std::size_t head_bytes() const { return shape_.max_length * position_bytes(); }
  std::size_t position_bytes() const { return shape_.head_dim * shape_.element_bytes; }
  std::byte* row(std::int32_t index);
  void copy(const std::byte* source, std::byte* destination, std::size_t length) const;

  KvShape shape_;
  RowMoves moves_;
  AlignedBuffer rows_;
  AlignedBuffer scratch_;
};

// A state [max_rows, row_bytes] that a step reads from `input` and replaces in `output`: with two buffers one
// engine binding per row count serves every step.
class RecurrentState {
 public:
  RecurrentState(std::size_t max_rows, std::size_t row_bytes);

  // input[r] = output[parents[r]].
  void select(std::span<const std::int32_t> parents);

  std::size_t row_bytes() const { return row_bytes_; }
  std::byte* input() { return input_.data(); }
  std::byte* output() { return output_.data(); }

 private:
  std::size_t row_bytes_;
  AlignedBuffer input_;
  AlignedBuffer output_;
};

// What is computed once from each image: [max_images, row_bytes], one row per live image.
class ImageMemory {
 public:
  ImageMemory(std::size_t max_images, std::size_t row_bytes);

  void move(std::size_t source, std::size_t destination);

  std::size_t row_bytes() const { return row_bytes_; }
  std::byte* data() { return rows_.data(); }

 private:
  std::size_t row_bytes_;
  AlignedBuffer rows_;
};

}  // namespace vlrt
