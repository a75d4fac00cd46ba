#include "vlrt/kv_cache.h"

#include <cstring>
#include <stdexcept>

namespace vlrt {

KvCache::KvCache(const KvShape& shape)
    : shape_(shape),
      moves_(shape.max_rows),
      rows_(shape.max_rows * shape.heads * shape.max_length * shape.head_dim * shape.element_bytes),
      scratch_(shape.heads * shape.max_length * shape.head_dim * shape.element_bytes) {}

std::byte* KvCache::row(std::int32_t index) {
  return index == kScratchRow ? scratch_.data()
                              : rows_.data() + static_cast<std::size_t>(index) * row_bytes();
}

void KvCache::copy(const std::byte* source, std::byte* destination, std::size_t length) const {
  for (std::size_t head = 0; head < shape_.heads; ++head) {
    std::memcpy(destination + head * head_bytes(), source + head * head_bytes(), length * position_bytes());
  }
}

void KvCache::apply(std::span<const RowMove> moves, std::span<const std::int32_t> lengths) {
  for (const RowMove& move : moves) {
    const auto length = static_cast<std::size_t>(lengths[static_cast<std::size_t>(move.content)]);
    copy(row(move.source), row(move.destination), length);
  }
}

void KvCache::reorder(std::span<const std::int32_t> parents, std::span<const std::int32_t> lengths) {
  if (lengths.size() > shape_.max_rows) throw std::invalid_argument("more lengths than rows");
  for (const std::int32_t parent : parents) {
    if (parent < 0 || static_cast<std::size_t>(parent) >= lengths.size()) {
      throw std::out_of_range("parent row out of range");
    }
  }
  for (const std::int32_t length : lengths) {
    if (length < 0 || static_cast<std::size_t>(length) > shape_.max_length) {
      throw std::out_of_range("filled length out of range");
    }
  }
  apply(moves_.plan(parents), lengths);
}

void KvCache::broadcast(std::size_t source, std::size_t first, std::size_t count, std::size_t length) {
  if (source >= shape_.max_rows || count > shape_.max_rows || first > shape_.max_rows - count ||
      length > shape_.max_length) {
    throw std::out_of_range("broadcast out of range");
  }
  for (std::size_t target = first; target < first + count; ++target) {
    if (target == source) continue;
    copy(row(static_cast<std::int32_t>(source)), row(static_cast<std::int32_t>(target)), length);
  }
}

void KvCache::copy_positions(const KvCache& source, std::size_t row, std::size_t from, std::size_t to,
                             std::size_t count) {
  const std::byte* there = source.rows_.data() + row * source.row_bytes() + from * position_bytes();
  std::byte* here = rows_.data() + row * row_bytes() + to * position_bytes();
  for (std::size_t head = 0; head < shape_.heads; ++head) {
    std::memcpy(here + head * head_bytes(), there + head * source.head_bytes(), count * position_bytes());
  }
}

RecurrentState::RecurrentState(std::size_t max_rows, std::size_t row_bytes)
    : row_bytes_(row_bytes), input_(max_rows * row_bytes), output_(max_rows * row_bytes) {}

void RecurrentState::select(std::span<const std::int32_t> parents) {
  for (std::size_t row = 0; row < parents.size(); ++row) {
    const auto parent = static_cast<std::size_t>(parents[row]);
    std::memcpy(input_.data() + row * row_bytes_, output_.data() + parent * row_bytes_, row_bytes_);
  }
}

ImageMemory::ImageMemory(std::size_t max_images, std::size_t row_bytes)
    : row_bytes_(row_bytes), rows_(max_images * row_bytes) {}

void ImageMemory::move(std::size_t source, std::size_t destination) {
  if (source == destination) return;
  std::memcpy(rows_.data() + destination * row_bytes_, rows_.data() + source * row_bytes_, row_bytes_);
}

}  // namespace vlrt
