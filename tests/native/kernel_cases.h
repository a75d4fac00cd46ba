// What the tests of the kernels share.
#pragma once

#include <cstddef>
#include <thread>

#include "activations.h"
#include "parallel.h"

namespace vlrt::test {

inline constexpr kernels::Activation kActivations[] = {
    kernels::Activation::none,      kernels::Activation::relu,       kernels::Activation::gelu,
    kernels::Activation::gelu_tanh, kernels::Activation::quick_gelu, kernels::Activation::silu};

// Runs the last task first, on two threads.
inline void backwards(void*, std::size_t count, kernels::Parallel::Body body, void* data) {
  std::thread odd([&] {
    for (std::size_t index = count; index-- > 0;)
      if (index % 2 == 1) body(data, index);
  });
  for (std::size_t index = count; index-- > 0;)
    if (index % 2 == 0) body(data, index);
  odd.join();
}

}  // namespace vlrt::test
