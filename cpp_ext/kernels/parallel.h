// How a kernel is spread over threads: the engine's own when it runs as an operator, any others in a test.
#pragma once

#include <cstddef>
#include <type_traits>

namespace vlrt::kernels {

// Runs `body(0) … body(count - 1)`, in any order and on any thread, and returns when all are done.
class Parallel {
 public:
  using Body = void (*)(void* data, std::size_t index);
  using Runner = void (*)(void* context, std::size_t count, Body body, void* data);

  // `threads`: how many may run at once, as far as is known: a hint for how finely to split.
  Parallel(Runner runner, void* context, std::size_t threads = 1)
      : runner_(runner), context_(context), threads_(threads == 0 ? 1 : threads) {}

  std::size_t threads() const { return threads_; }

  // `f` must not throw: there is nobody on the other threads to catch it.
  template <class F>
  void operator()(std::size_t count, F&& f) const {
    using Callable = std::remove_reference_t<F>;
    if (count == 1) {
      f(std::size_t{0});
    } else if (count != 0) {
      const Body body = [](void* data, std::size_t index) { (*static_cast<Callable*>(data))(index); };
      runner_(context_, count, body, const_cast<void*>(static_cast<const void*>(&f)));
    }
  }

 private:
  Runner runner_;
  void* context_;
  std::size_t threads_;
};

// In place, one after the other.
inline Parallel serial() {
  const Parallel::Runner runner = [](void*, std::size_t count, Parallel::Body body, void* data) {
    for (std::size_t index = 0; index < count; ++index) body(data, index);
  };
  return Parallel(runner, nullptr);
}

}  // namespace vlrt::kernels
