#include "vlrt/ddpm.h"

#include <algorithm>
#include <cmath>

namespace vlrt {

bool PosteriorRule::needs_variance() const {
  return options_.variance == Variance::kLearned || options_.variance == Variance::kLearnedRange;
}

void PosteriorRule::allocate() {
  if (needs_variance()) deviations_.resize(extent_.total());
}

void PosteriorRule::fill_deviations(const StepData& data, const Posterior& p) {
  const std::size_t count = extent_.total();
  if (options_.variance == Variance::kLearned) {
    for (std::size_t i = 0; i < count; ++i) deviations_[i] = std::sqrt(data.variance[i]);
    return;
  }
  for (std::size_t i = 0; i < count; ++i) {
    const float fraction = (data.variance[i] + 1.0f) / 2.0f;
    deviations_[i] = 0.5f * (fraction * p.log_large + (1.0f - fraction) * p.log_small);
  }
  exponentials(deviations_.data(), deviations_.data(), count);
}

void PosteriorRule::step(const StepData& data) {
  const Posterior& p = posteriors_[data.index];
  const bool draws = evaluations_[data.index].draws, learned = needs_variance();
  denoise(data, p.clean);
  if (learned && (draws || data.gradient != nullptr)) fill_deviations(data, p);
  for (std::size_t i = 0; i < extent_.total(); ++i) {
    const float deviation = learned ? deviations_[i] : p.deviation;
    float mean = p.clean_weight * data.denoised[i] + p.sample_weight * data.sample[i];
    if (data.gradient != nullptr) mean += deviation * deviation * data.gradient[i];
    data.sample[i] = draws ? mean + deviation * data.noise[i] : mean;
  }
}

DdpmRule::DdpmRule(const NoiseSchedule& schedule, const UpdateOptions& options) : PosteriorRule(options) {
  const auto timesteps = visited_timesteps(schedule, options);
  const auto signals = schedule.alphas_cumprod();
  for (std::size_t i = 0; i < timesteps.size(); ++i) {
    const bool last = i + 1 == timesteps.size();
    const float signal = signals[static_cast<std::size_t>(timesteps[i])];
    const float next = last ? 1.0f : signals[static_cast<std::size_t>(timesteps[i + 1])];
    const float noise = 1.0f - signal, ratio = signal / next, beta = 1.0f - ratio;
    const float small = std::max((1.0f - next) / noise * beta, 1e-20f);
    Posterior p;
    p.clean = to_clean(std::sqrt(signal), std::sqrt(noise));
    p.clean_weight = (std::sqrt(next) * beta) / noise;
    p.sample_weight = std::sqrt(ratio) * (1.0f - next) / noise;
    p.log_small = std::log(small);
    p.log_large = std::log(beta);
    p.deviation = std::sqrt(options.variance == Variance::kFixedLarge ? beta : small);
    // The last posterior has no variance; for its logarithm the one before stands in, as in GLIDE.
    if (last && i > 0) p.log_small = posteriors_.back().log_small;
    posteriors_.push_back(p);
    evaluations_.push_back(at_signal(static_cast<double>(timesteps[i]), signal));
    evaluations_.back().draws = timesteps[i] > 0;
  }
}

}  // namespace vlrt
