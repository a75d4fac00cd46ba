// The tokens and records of all hypotheses as a tree of back-pointers: nothing is copied while searching.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "vlrt/aligned.h"

namespace vlrt {

inline constexpr std::int32_t kRoot = -1;

// Grows by one node per chosen token. A node knows its parent and the slot that the step which produced the
// token left its records in (slot = step * max_rows + row).
class Trellis {
 public:
  Trellis(std::size_t max_steps, std::size_t max_rows);

  // Adds a step output [max_rows, row_bytes] that is kept for every step; returns its index.
  std::size_t add_record(std::size_t row_bytes);

  void clear() { nodes_.clear(); }
  std::int32_t append(std::int32_t token, std::int32_t parent, std::int32_t slot);
  std::int32_t slot(std::size_t step, std::int32_t row) const {
    return static_cast<std::int32_t>(step * max_rows_) + row;
  }

  // Keeps `rows` rows of record `index` as those of `step`.
  void keep(std::size_t index, std::size_t step, const std::byte* rows, std::size_t count);

  std::int32_t token(std::int32_t node) const { return nodes_[static_cast<std::size_t>(node)].token; }
  std::size_t depth(std::int32_t node) const;
  // Appends the tokens from the root to `node` to `out`.
  void tokens(std::int32_t node, std::vector<std::int32_t>& out) const;
  // Record `index` of every token from the root to `node`: [depth, row_bytes] into `out`.
  void record(std::size_t index, std::int32_t node, std::byte* out) const;
  std::size_t record_bytes(std::size_t index) const { return records_[index].row_bytes; }
  // How many tokens from the root on all of `nodes` share.
  std::size_t agreed(std::span<const std::int32_t> nodes);

 private:
  struct Node {
    std::int32_t token;
    std::int32_t parent;
    std::int32_t slot;
    std::int32_t depth;
  };
  struct Record {
    std::size_t row_bytes;
    AlignedBuffer slots;
  };
  std::int32_t common(std::int32_t a, std::int32_t b) const;
  const Node& at(std::int32_t node) const { return nodes_[static_cast<std::size_t>(node)]; }

  std::size_t max_steps_;
  std::size_t max_rows_;
  std::vector<Node> nodes_;
  std::vector<Record> records_;
};

}  // namespace vlrt
