// Zeroed memory on cache-line borders, allocated once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace vlrt {

inline constexpr std::size_t kAlignment = 64;

// Bytes on a 64-byte border. Pages that are never touched are never committed (they come from `calloc`).
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t bytes) : bytes_(bytes), base_(std::calloc(bytes + kAlignment, 1)) {
    if (base_ == nullptr) throw std::bad_alloc();
    const auto address = reinterpret_cast<std::uintptr_t>(base_);
    const std::size_t past = address % kAlignment;
    data_ = static_cast<std::byte*>(base_) + (past == 0 ? 0 : kAlignment - past);
  }
  AlignedBuffer(AlignedBuffer&& other) noexcept { swap(other); }
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() { std::free(base_); }

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return bytes_; }

  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  void swap(AlignedBuffer& other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(base_, other.base_);
    std::swap(data_, other.data_);
  }

  std::size_t bytes_ = 0;
  void* base_ = nullptr;
  std::byte* data_ = nullptr;
};

}  // namespace vlrt
