#include "vlrt/row_moves.h"

#include <algorithm>
#include <stdexcept>

namespace vlrt {

namespace {
std::size_t at(std::int32_t row) {
  return static_cast<std::size_t>(row);
}
}  // namespace

RowMoves::RowMoves(std::size_t max_rows) : pending_(max_rows), done_(max_rows) {
  ready_.reserve(max_rows);
  moves_.reserve(2 * max_rows);
}

std::span<const RowMove> RowMoves::plan(std::span<const std::int32_t> parents) {
  if (parents.size() > pending_.size()) throw std::invalid_argument("more rows than the buffers hold");
  std::fill(pending_.begin(), pending_.end(), 0);
  std::fill(done_.begin(), done_.end(), char{0});
  moves_.clear();
  for (std::size_t row = 0; row < parents.size(); ++row) {
    const std::int32_t parent = parents[row];
    if (parent < 0 || at(parent) >= pending_.size()) throw std::out_of_range("parent row out of range");
    if (at(parent) != row) ++pending_[at(parent)];
  }
  copy_free_rows(parents);
  rotate_cycles(parents);
  return moves_;
}

// A row whose content nobody else waits for may be overwritten; doing so can free its parent in turn.
void RowMoves::copy_free_rows(std::span<const std::int32_t> parents) {
  const auto changes = [&](std::size_t row) { return row < parents.size() && at(parents[row]) != row; };
  ready_.clear();
  for (std::size_t row = parents.size(); row-- > 0;) {
    if (changes(row) && pending_[row] == 0) ready_.push_back(static_cast<std::int32_t>(row));
  }
  while (!ready_.empty()) {
    const std::int32_t row = ready_.back();
    ready_.pop_back();
    const std::int32_t parent = parents[at(row)];
    moves_.push_back({parent, row, parent});
    done_[at(row)] = 1;
    if (--pending_[at(parent)] == 0 && changes(at(parent))) ready_.push_back(parent);
  }
}

// What is left is awaited by exactly one other row each: pure cycles.
void RowMoves::rotate_cycles(std::span<const std::int32_t> parents) {
  for (std::size_t first = 0; first < parents.size(); ++first) {
    if (done_[first] || at(parents[first]) == first) continue;
    const auto start = static_cast<std::int32_t>(first);
    moves_.push_back({start, kScratchRow, start});
    std::int32_t row = start;
    for (; parents[at(row)] != start; row = parents[at(row)]) {
      moves_.push_back({parents[at(row)], row, parents[at(row)]});
      done_[at(row)] = 1;
    }
    moves_.push_back({kScratchRow, row, start});
    done_[at(row)] = 1;
  }
}

}  // namespace vlrt
