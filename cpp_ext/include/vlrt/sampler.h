// Choosing tokens from a row of scores: the largest, or at random.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vlrt/noise.h"

namespace vlrt {

// Index of the largest score, the lowest among equals; -1 where all are -inf.
std::int32_t greedy(std::span<const float> scores);

// Probabilities from scores: exp(x - maximum) / sum; -inf gives 0. Throws std::domain_error without a finite
// score.
void softmax(std::span<float> scores);

// One draw as `torch.multinomial(p, 1)` makes it on the CPU: every p[i] races with its own exponential,
// p[i] / e[i], and the largest wins (torch 2.13, `aten/src/ATen/native/Distributions.cpp`). Always takes
// 2 * size draws from the generator, so rows may be skipped with `discard`.
std::int32_t multinomial(std::span<const float> probabilities, TorchGenerator& generator);

// The race of `torch.multinomial(p, count)` without replacement, fed row by row: the `count` best, best
// first.
class ExponentialRace {
 public:
  struct Runner {
    float pace;
    std::int64_t index;
  };

  void start(std::size_t count);
  void run(float probability, std::int64_t index, TorchGenerator& generator);
  std::span<const Runner> finish();

 private:
  std::size_t count_ = 0;
  std::vector<Runner> best_;
};

}  // namespace vlrt
