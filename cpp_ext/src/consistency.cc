#include "vlrt/consistency.h"

#include <cmath>
#include <stdexcept>

namespace vlrt {

namespace {

std::vector<std::int64_t> decoder_timesteps(const NoiseSchedule& schedule, const UpdateOptions& options) {
  if (options.spacing == Spacing::kListed) return visited_timesteps(schedule, options);
  if (options.steps != 2 || schedule.train_steps() <= 1008) {
    throw std::invalid_argument("the rule `consistency` has 2 steps of 1024 timesteps, got " +
                                std::to_string(options.steps) + " of " +
                                std::to_string(schedule.train_steps()));
  }
  return {1008, 512};
}

}  // namespace

ConsistencyRule::ConsistencyRule(const NoiseSchedule& schedule, const UpdateOptions& options)
    : UpdateRule(options) {
  constexpr float kDataVariance = 0.25f, kDataDeviation = 0.5f;
  const auto timesteps = decoder_timesteps(schedule, options);
  const auto signals = schedule.alphas_cumprod();
  for (std::size_t i = 0; i < timesteps.size(); ++i) {
    const bool last = i + 1 == timesteps.size();
    const float signal = signals[static_cast<std::size_t>(timesteps[i])];
    const float next = last ? 1.0f : signals[static_cast<std::size_t>(timesteps[i + 1])];
    const float sigma = std::sqrt(1.0f / signal - 1.0f), stretch = std::sqrt(1.0f / signal);
    const float total = sigma * sigma + kDataVariance;
    Coefficients c;
    c.clean = {stretch * kDataVariance / total, sigma * kDataDeviation / std::sqrt(total)};
    c.next_signal = std::sqrt(next);
    c.next_noise = std::sqrt(1.0f - next);
    coefficients_.push_back(c);
    evaluations_.push_back(at_signal(static_cast<double>(timesteps[i]), signal));
    evaluations_.back().divisor = std::sqrt(total) / stretch;
    evaluations_.back().draws = !last;
  }
  init_noise_sigma_ = evaluations_.front().noise;
}

void ConsistencyRule::step(const StepData& data) {
  const Coefficients& c = coefficients_[data.index];
  denoise(data, c.clean);
  const bool draws = evaluations_[data.index].draws;
  for (std::size_t i = 0; i < extent_.total(); ++i) {
    data.sample[i] = c.next_signal * data.denoised[i];
    if (draws) data.sample[i] += c.next_noise * data.noise[i];
  }
}

}  // namespace vlrt
