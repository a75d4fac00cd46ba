#include "vlrt/lcm.h"

#include <cmath>
#include <stdexcept>

namespace vlrt {

namespace {

// Evenly spaced places among the timesteps that the model was distilled with.
std::vector<std::int64_t> lcm_timesteps(const NoiseSchedule& schedule, const UpdateOptions& options) {
  if (options.spacing == Spacing::kListed) return visited_timesteps(schedule, options);
  const std::size_t original = options.original_steps;
  if (original == 0 || original > schedule.train_steps() || options.steps > original) {
    throw std::invalid_argument("the rule `lcm` was distilled with " + std::to_string(original) +
                                " steps, got " + std::to_string(options.steps));
  }
  const std::size_t stride = schedule.train_steps() / original;
  const double share = static_cast<double>(original) / static_cast<double>(options.steps);
  std::vector<std::int64_t> timesteps;
  for (std::size_t i = 0; i < options.steps; ++i) {
    const auto place = static_cast<std::size_t>(std::floor(static_cast<double>(i) * share));
    timesteps.push_back(static_cast<std::int64_t>((original - place) * stride) - 1);
  }
  return timesteps;
}

}  // namespace

LcmRule::LcmRule(const NoiseSchedule& schedule, const UpdateOptions& options) : UpdateRule(options) {
  constexpr float kDataVariance = 0.25f;
  const auto timesteps = lcm_timesteps(schedule, options);
  const auto signals = schedule.alphas_cumprod();
  for (std::size_t i = 0; i < timesteps.size(); ++i) {
    const bool last = i + 1 == timesteps.size();
    const auto t = static_cast<std::size_t>(timesteps[i]);
    const float next = signals[last ? t : static_cast<std::size_t>(timesteps[i + 1])];
    const float scaled = static_cast<float>(timesteps[i]) * options.timestep_scaling;
    Coefficients c;
    c.clean = to_clean(std::sqrt(signals[t]), std::sqrt(1.0f - signals[t]));
    c.skip = kDataVariance / (scaled * scaled + kDataVariance);
    c.out = scaled / std::sqrt(scaled * scaled + kDataVariance);
    c.next_signal = last ? 1.0f : std::sqrt(next);
    c.next_noise = last ? 0.0f : std::sqrt(1.0f - next);
    coefficients_.push_back(c);
    evaluations_.push_back(at_signal(static_cast<double>(timesteps[i]), signals[t]));
    evaluations_.back().draws = !last;
  }
}

void LcmRule::step(const StepData& data) {
  const Coefficients& c = coefficients_[data.index];
  denoise(data, c.clean);
  combine<2>(data.denoised, extent_.total(), {{{c.out, data.denoised}, {c.skip, data.sample}}});
  const bool draws = evaluations_[data.index].draws;
  for (std::size_t i = 0; i < extent_.total(); ++i) {
    data.sample[i] = c.next_signal * data.denoised[i];
    if (draws) data.sample[i] += c.next_noise * data.noise[i];
  }
}

}  // namespace vlrt
