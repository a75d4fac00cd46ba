// One pass over a row of logits: what its log-softmax needs, and an upper bound for every block of it.
#pragma once

#include <cstddef>
#include <span>

namespace vlrt {

inline constexpr std::size_t kBlock = 64;

constexpr std::size_t block_count(std::size_t vocabulary) {
  return (vocabulary + kBlock - 1) / kBlock;
}

// log p(i) = (x[i] - maximum) - log_sum, in this order of operations as torch's `log_softmax` has it.
struct Normalizer {
  float maximum = 0.0f;
  float log_sum = 0.0f;
  float log_probability(float logit) const { return (logit - maximum) - log_sum; }
};

// `maxima[b]` becomes the largest of x[64 b], …, x[64 b + 63]; returns the largest of all.
float block_maxima(std::span<const float> x, std::span<float> maxima);

// As `block_maxima`, and the row's normalizer. Exponentials of a block are summed in float, blocks in double.
// A row that has a NaN, +inf or nothing but -inf gives a NaN `log_sum`.
Normalizer normalize(std::span<const float> x, std::span<float> maxima);

// x[i] becomes log p(i).
void subtract(std::span<float> x, const Normalizer& normalizer);

}  // namespace vlrt
