#include "vlrt/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace vlrt {

namespace {

// The smallest exponential that torch lets through is the one of u = 0, which is 0: p / 0 is +inf, as in
// torch.
float pace(float probability, TorchGenerator& generator) {
  return probability / static_cast<float>(generator.exponential());
}

bool ahead(const ExponentialRace::Runner& a, const ExponentialRace::Runner& b) {
  return a.pace != b.pace ? a.pace > b.pace : a.index < b.index;
}

}  // namespace

std::int32_t greedy(std::span<const float> scores) {
  float best = -std::numeric_limits<float>::infinity();
  std::int32_t index = -1;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] > best) {
      best = scores[i];
      index = static_cast<std::int32_t>(i);
    }
  }
  return index;
}

void softmax(std::span<float> scores) {
  const float maximum = *std::max_element(scores.begin(), scores.end());
  if (!std::isfinite(maximum)) throw std::domain_error("no token has a finite score");
  float sum = 0.0f;
  for (float& score : scores) {
    score = std::isinf(score) ? 0.0f : std::exp(score - maximum);
    sum += score;
  }
  for (float& score : scores) score /= sum;
}

std::int32_t multinomial(std::span<const float> probabilities, TorchGenerator& generator) {
  std::int32_t winner = -1;
  float best = 0.0f;
  for (std::size_t i = 0; i < probabilities.size(); ++i) {
    if (probabilities[i] <= 0.0f) {
      generator.discard(2);
      continue;
    }
    const float time = pace(probabilities[i], generator);
    if (time > best) {
      best = time;
      winner = static_cast<std::int32_t>(i);
    }
  }
  return winner;
}

void ExponentialRace::start(std::size_t count) {
  count_ = count;
  best_.clear();
  best_.reserve(count + 1);
}

void ExponentialRace::run(float probability, std::int64_t index, TorchGenerator& generator) {
  if (probability <= 0.0f) return generator.discard(2);
  const Runner runner{pace(probability, generator), index};
  if (best_.size() == count_ && !ahead(runner, best_.front())) return;
  best_.push_back(runner);
  std::push_heap(best_.begin(), best_.end(), ahead);  // the slowest of the best at the front
  if (best_.size() > count_) {
    std::pop_heap(best_.begin(), best_.end(), ahead);
    best_.pop_back();
  }
}

std::span<const ExponentialRace::Runner> ExponentialRace::finish() {
  std::sort(best_.begin(), best_.end(), ahead);
  return best_;
}

}  // namespace vlrt
