#include "vlrt/euler.h"

#include <cmath>

namespace vlrt {

namespace {

std::vector<double> real_timesteps(const NoiseSchedule& schedule, const UpdateOptions& options) {
  std::vector<double> timesteps;
  if (options.spacing == Spacing::kListed) {
    const auto listed = visited_timesteps(schedule, options);
    timesteps.assign(listed.begin(), listed.end());
  } else {
    timesteps =
        spaced_real_timesteps(options.spacing, schedule.train_steps(), options.steps, options.steps_offset);
  }
  for (double& t : timesteps) t = static_cast<double>(static_cast<float>(t));
  return timesteps;
}

}  // namespace

SigmaWalk sigma_walk(const NoiseSchedule& schedule, const UpdateOptions& options) {
  const std::vector<float> trained = schedule.sigmas();
  SigmaWalk walk{real_timesteps(schedule, options), {}};
  std::vector<double> levels;
  for (const double t : walk.timesteps) levels.push_back(interpolate(trained, t));
  if (options.karras_sigmas) {
    levels = karras_sigmas(levels.front(), levels.back(), levels.size());
    std::vector<float> logs(trained);
    for (float& level : logs) level = std::log(level);
    for (std::size_t i = 0; i < levels.size(); ++i) walk.timesteps[i] = timestep_of_sigma(levels[i], logs);
  }
  walk.sigmas.assign(levels.begin(), levels.end());
  walk.sigmas.push_back(options.final_sigma == FinalSigma::kZero ? 0.0f : trained.front());
  return walk;
}

Conversion SigmaRule::clean_at(float sigma) const {
  switch (options_.prediction) {
    case Prediction::kEpsilon:
      return {1.0f, -sigma};
    case Prediction::kVelocity:
      return {1.0f / (sigma * sigma + 1.0f), -sigma / std::sqrt(sigma * sigma + 1.0f)};
    case Prediction::kSample:
      break;
  }
  return {0.0f, 1.0f};
}

Evaluation SigmaRule::at_sigma(double timestep, float sigma) const {
  Evaluation evaluation;
  evaluation.timestep = timestep;
  evaluation.divisor = std::sqrt(sigma * sigma + 1.0f);
  evaluation.noise = sigma;
  return evaluation;
}

void SigmaRule::set_init_noise(float largest) {
  const bool from_top = options_.spacing == Spacing::kLinspace || options_.spacing == Spacing::kTrailing;
  init_noise_sigma_ = from_top ? largest : std::sqrt(largest * largest + 1.0f);
}

EulerRule::EulerRule(const NoiseSchedule& schedule, const UpdateOptions& options, bool ancestral)
    : SigmaRule(options) {
  UpdateOptions walked = options;
  if (ancestral) walked.karras_sigmas = false, walked.final_sigma = FinalSigma::kZero;
  const SigmaWalk walk = sigma_walk(schedule, walked);
  for (std::size_t i = 0; i < walk.timesteps.size(); ++i) {
    const float from = walk.sigmas[i], to = walk.sigmas[i + 1];
    float down = to, up = 0.0f;
    if (ancestral) {
      up = std::sqrt(to * to * (from * from - to * to) / (from * from));
      down = std::sqrt(to * to - up * up);
    }
    coefficients_.push_back({from, down - from, up});
    evaluations_.push_back(at_sigma(walk.timesteps[i], from));
    evaluations_.back().draws = ancestral;
  }
  set_init_noise(walk.sigmas.front());
}

void EulerRule::step(const StepData& data) {
  const Coefficients& c = coefficients_[data.index];
  denoise(data, clean_at(c.sigma));
  const bool fresh = evaluations_[data.index].draws;
  for (std::size_t i = 0; i < extent_.total(); ++i) {
    const float derivative = (data.sample[i] - data.denoised[i]) / c.sigma;
    data.sample[i] += derivative * c.change;
    if (fresh) data.sample[i] += c.fresh * data.noise[i];
  }
}

}  // namespace vlrt
