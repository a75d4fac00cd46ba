// Memory that a thread keeps from call to call.
#pragma once

#include <cstddef>

namespace vlrt::kernels {

// Room for floats from a cache line's border on, in large pages where the system has them: matrices that are
// written 36 at a time would wait for the table of small ones. What it holds is lost when it grows.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();

  float* room(std::size_t floats) { return floats <= floats_ ? data_ : grow(floats); }

 private:
  float* grow(std::size_t floats);

  float* data_ = nullptr;
  std::size_t floats_ = 0;
  std::size_t border_ = 0;
};

}  // namespace vlrt::kernels
