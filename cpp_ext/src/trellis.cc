#include "vlrt/trellis.h"

#include <cstring>

namespace vlrt {

// Every step keeps at most `max_rows` live nodes and as many finished ones.
Trellis::Trellis(std::size_t max_steps, std::size_t max_rows) : max_steps_(max_steps), max_rows_(max_rows) {
  nodes_.reserve(2 * max_steps * max_rows);
}

std::size_t Trellis::add_record(std::size_t row_bytes) {
  records_.push_back({row_bytes, AlignedBuffer(max_steps_ * max_rows_ * row_bytes)});
  return records_.size() - 1;
}

std::int32_t Trellis::append(std::int32_t token, std::int32_t parent, std::int32_t slot) {
  const std::int32_t depth = parent == kRoot ? 1 : at(parent).depth + 1;
  nodes_.push_back({token, parent, slot, depth});
  return static_cast<std::int32_t>(nodes_.size()) - 1;
}

void Trellis::keep(std::size_t index, std::size_t step, const std::byte* rows, std::size_t count) {
  Record& record = records_[index];
  std::memcpy(record.slots.data() + step * max_rows_ * record.row_bytes, rows, count * record.row_bytes);
}

std::size_t Trellis::depth(std::int32_t node) const {
  return node == kRoot ? 0 : static_cast<std::size_t>(at(node).depth);
}

void Trellis::tokens(std::int32_t node, std::vector<std::int32_t>& out) const {
  std::size_t place = out.size() + depth(node);
  out.resize(place);
  for (; node != kRoot; node = at(node).parent) out[--place] = at(node).token;
}

void Trellis::record(std::size_t index, std::int32_t node, std::byte* out) const {
  const Record& record = records_[index];
  for (std::size_t place = depth(node); node != kRoot; node = at(node).parent) {
    const std::byte* row = record.slots.data() + static_cast<std::size_t>(at(node).slot) * record.row_bytes;
    std::memcpy(out + --place * record.row_bytes, row, record.row_bytes);
  }
}

std::int32_t Trellis::common(std::int32_t a, std::int32_t b) const {
  while (a != b) {
    std::int32_t& deeper = depth(a) >= depth(b) ? a : b;
    deeper = at(deeper).parent;
  }
  return a;
}

std::size_t Trellis::agreed(std::span<const std::int32_t> nodes) {
  if (nodes.empty()) return 0;
  std::int32_t shared = nodes.front();
  for (const std::int32_t node : nodes) shared = common(shared, node);
  return depth(shared);
}

}  // namespace vlrt
