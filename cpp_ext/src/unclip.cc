#include "vlrt/unclip.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace vlrt {

namespace {

std::vector<std::int64_t> unclip_timesteps(const NoiseSchedule& schedule, const UpdateOptions& options) {
  if (options.spacing == Spacing::kListed) return visited_timesteps(schedule, options);
  if (options.steps < 2) throw std::invalid_argument("the rule `unclip` needs at least 2 steps");
  const double stride =
      static_cast<double>(schedule.train_steps() - 1) / static_cast<double>(options.steps - 1);
  std::vector<std::int64_t> timesteps(options.steps);
  for (std::size_t i = 0; i < options.steps; ++i) {
    timesteps[options.steps - 1 - i] =
        static_cast<std::int64_t>(std::nearbyint(static_cast<double>(i) * stride));
  }
  return timesteps;
}

}  // namespace

UnclipRule::UnclipRule(const NoiseSchedule& schedule, const UpdateOptions& options) : PosteriorRule(options) {
  if (options.variance != Variance::kFixedSmallLog && options.variance != Variance::kLearnedRange) {
    throw std::invalid_argument("the rule `unclip` knows the variances fixed_small_log and learned_range");
  }
  const auto timesteps = unclip_timesteps(schedule, options);
  const auto signals = schedule.alphas_cumprod();
  for (std::size_t i = 0; i < timesteps.size(); ++i) {
    const bool last = i + 1 == timesteps.size();
    const auto t = static_cast<std::size_t>(timesteps[i]);
    // The reference takes the timestep before, and not "none", as the last one's successor.
    const std::int64_t previous = last ? timesteps[i] - 1 : timesteps[i + 1];
    const float signal = signals[t];
    const float next = previous >= 0 ? signals[static_cast<std::size_t>(previous)] : 1.0f;
    const bool neighbours = previous == timesteps[i] - 1;
    const float beta = neighbours ? schedule.betas()[t] : 1.0f - signal / next;
    const float noise = 1.0f - signal, small = (1.0f - next) / noise * beta;
    Posterior p;
    p.clean = to_clean(std::sqrt(signal), std::sqrt(noise));
    p.clean_weight = (std::sqrt(next) * beta) / noise;
    p.sample_weight = std::sqrt(1.0f - beta) * (1.0f - next) / noise;
    p.log_small = std::log(std::max(small, 1e-20f));
    p.log_large = std::log(beta);
    p.deviation = std::exp(0.5f * p.log_small);
    posteriors_.push_back(p);
    evaluations_.push_back(at_signal(static_cast<double>(timesteps[i]), signal));
    evaluations_.back().draws = timesteps[i] > 0;
  }
}

}  // namespace vlrt
