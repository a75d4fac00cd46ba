// The least number of row copies that turn one row order into another, in place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace vlrt {

inline constexpr std::int32_t kScratchRow = -1;

// Copies row `source` to row `destination`; either may be the scratch row. `content` is the row that the
// copied content belonged to before any move: its filled length applies.
struct RowMove {
  std::int32_t source;
  std::int32_t destination;
  std::int32_t content;
};

// Plans in-place gathers `new[r] = old[parents[r]]`. Rows that keep their parent are not touched; duplicates
// are copied from wherever they lie; a permutation cycle costs one copy through a scratch row.
class RowMoves {
 public:
  explicit RowMoves(std::size_t max_rows);

  // Moves in the order they must be done; valid until the next call. `parents` may be shorter or longer than
  // the number of rows before; entries lie in [0, max_rows).
  std::span<const RowMove> plan(std::span<const std::int32_t> parents);

 private:
  void copy_free_rows(std::span<const std::int32_t> parents);
  void rotate_cycles(std::span<const std::int32_t> parents);

  std::vector<std::int32_t> pending_;  // how many rows still need the content of each row
  std::vector<std::int32_t> ready_;
  std::vector<char> done_;
  std::vector<RowMove> moves_;
};

}  // namespace vlrt
