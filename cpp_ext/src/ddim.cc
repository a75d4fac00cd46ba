#include "vlrt/ddim.h"

#include <cmath>

namespace vlrt {

DdimRule::DdimRule(const NoiseSchedule& schedule, const UpdateOptions& options) : UpdateRule(options) {
  const auto timesteps = visited_timesteps(schedule, options);
  const auto signals = schedule.alphas_cumprod();
  const bool listed = options.spacing == Spacing::kListed;
  const auto stride = static_cast<std::int64_t>(schedule.train_steps() / options.steps);
  const float final_signal = options.set_alpha_to_one ? 1.0f : signals[0];
  for (std::size_t i = 0; i < timesteps.size(); ++i) {
    const std::int64_t t = timesteps[i];
    const std::int64_t after = i + 1 < timesteps.size() ? timesteps[i + 1] : -1;
    const std::int64_t previous = listed ? after : t - stride;
    const float signal = signals[static_cast<std::size_t>(t)];
    const float next = previous >= 0 ? signals[static_cast<std::size_t>(previous)] : final_signal;
    const float noise = 1.0f - signal;
    const float variance = ((1.0f - next) / noise) * (1.0f - signal / next);
    Coefficients c;
    c.root_signal = std::sqrt(signal);
    c.root_noise = std::sqrt(noise);
    c.clean = to_clean(c.root_signal, c.root_noise);
    c.epsilon = to_epsilon(c.root_signal, c.root_noise);
    c.deviation = options.eta * std::sqrt(variance);
    c.clean_weight = std::sqrt(next);
    c.epsilon_weight = std::sqrt(1.0f - next - c.deviation * c.deviation);
    coefficients_.push_back(c);
    evaluations_.push_back(at_signal(static_cast<double>(t), signal));
    evaluations_.back().draws = options.eta > 0.0f;
  }
}

void DdimRule::step(const StepData& data) {
  const Coefficients& c = coefficients_[data.index];
  denoise(data, c.clean);
  if (data.gradient != nullptr) follow(data, c);
  update(data, c);
}

// The noise of the bounded clean sample moves against the gradient, and the clean sample with it.
void DdimRule::follow(const StepData& data, const Coefficients& c) {
  const float shift = c.root_noise * c.root_noise / c.root_signal;
  for (std::size_t i = 0; i < extent_.total(); ++i) data.denoised[i] += shift * data.gradient[i];
}

void DdimRule::update(const StepData& data, const Coefficients& c) {
  // Where the clean sample was moved, the noise follows from it and not from the prediction.
  const bool moved = options_.rederive_epsilon || data.gradient != nullptr || data.replaced != nullptr;
  const float* source = moved ? data.denoised : data.prediction;
  const Conversion epsilon = moved ? Conversion{1.0f, -c.root_signal, c.root_noise} : c.epsilon;
  const float* fresh = c.deviation > 0.0f ? data.noise : nullptr;
  for (std::size_t i = 0; i < extent_.total(); ++i) {
    const float direction =
        (epsilon.x_weight * data.sample[i] + epsilon.y_weight * source[i]) / epsilon.divisor;
    data.sample[i] = c.clean_weight * data.denoised[i] + c.epsilon_weight * direction;
    if (fresh != nullptr) data.sample[i] += c.deviation * fresh[i];
  }
}

}  // namespace vlrt
