// What the kinds of attention share: room that a thread keeps, and work spread over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <new>

#include "parallel.h"

namespace vlrt::kernels {

// Floats on a cache-line border that a thread keeps from call to call.
class Scratch {
 public:
  float* reserve(std::size_t count) {
    if (count > count_) {
      floats_.reset();
      count_ = 0;
      floats_.reset(static_cast<float*>(::operator new[](count * sizeof(float), std::align_val_t{64})));
      count_ = count;
    }
    return floats_.get();
  }

 private:
  struct Free {
    void operator()(float* floats) const { ::operator delete[](floats, std::align_val_t{64}); }
  };
  std::unique_ptr<float[], Free> floats_;
  std::size_t count_ = 0;
};

// A body must not throw, the caller may.
template <class Body>
void run_all(const Parallel& parallel, std::size_t count, const Body& body) {
  std::atomic<bool> exhausted{false};
  parallel(count, [&](std::size_t index) {
    try {
      body(index);
    } catch (const std::bad_alloc&) {
      exhausted = true;
    }
  });
  if (exhausted) throw std::bad_alloc();
}

// Tasks for `units` pieces that read so many floats in all: less than 96 KB are read in the time that it
// takes to wake a thread.
inline std::size_t tasks_for(std::size_t units, std::size_t floats) {
  constexpr std::size_t kFloatsWorthATask = std::size_t{24} << 10;
  return std::clamp<std::size_t>(floats / kFloatsWorthATask, 1, units);
}

}  // namespace vlrt::kernels
