// How both kinds of attention are spread over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <new>

#include "parallel.h"

namespace vlrt::kernels {

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
