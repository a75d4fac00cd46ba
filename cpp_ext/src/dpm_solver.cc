#include "vlrt/dpm_solver.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "vlrt/euler.h"

namespace vlrt {

namespace {

struct Level {
  float signal, noise, log_ratio;
};

Level level_of(float sigma) {
  const float signal = 1.0f / std::sqrt(sigma * sigma + 1.0f), noise = sigma * signal;
  return {signal, noise, std::log(signal) - std::log(noise)};
}

// The solver leaves one place for its last step, so `n` steps are the first n of n + 1 timesteps.
std::vector<double> solver_timesteps(const NoiseSchedule& schedule, const UpdateOptions& options) {
  if (options.spacing == Spacing::kListed || options.spacing == Spacing::kTrailing) {
    const auto timesteps = visited_timesteps(schedule, options);
    return {timesteps.begin(), timesteps.end()};
  }
  const auto spaced = spaced_timesteps(options.spacing, schedule.train_steps(), options.steps + 1,
                                       options.spacing == Spacing::kLeading ? options.steps_offset : 0);
  return {spaced.begin(), spaced.end() - 1};
}

SigmaWalk solver_walk(const NoiseSchedule& schedule, const UpdateOptions& options, bool cosine) {
  const std::vector<float> trained = schedule.sigmas();
  SigmaWalk walk;
  if (options.karras_sigmas) {
    const auto levels = karras_sigmas(static_cast<double>(trained.back()),
                                      static_cast<double>(trained.front()), options.steps);
    std::vector<float> logs(trained);
    for (float& level : logs) level = std::log(level);
    for (const double level : levels) {
      const double t = timestep_of_sigma(level, logs);
      walk.timesteps.push_back(cosine ? std::trunc(t) : std::nearbyint(t));
    }
    walk.sigmas.assign(levels.begin(), levels.end());
  } else {
    walk.timesteps = solver_timesteps(schedule, options);
    for (const double t : walk.timesteps) {
      walk.sigmas.push_back(static_cast<float>(interpolate(trained, t)));
    }
  }
  walk.sigmas.push_back(options.final_sigma == FinalSigma::kZero ? 0.0f : trained.front());
  return walk;
}

}  // namespace

DpmSolverRule::DpmSolverRule(const NoiseSchedule& schedule, const UpdateOptions& options)
    : UpdateRule(options) {
  if (options.solver_order < 1 || options.solver_order > 2) {
    throw std::invalid_argument("the rule `dpm++2m` has solver orders 1 and 2, got " +
                                std::to_string(options.solver_order));
  }
  const SigmaWalk walk = solver_walk(schedule, options, schedule.squared_cosine());
  const std::size_t steps = walk.timesteps.size();
  for (std::size_t i = 0; i < steps; ++i) {
    const Level from = level_of(walk.sigmas[i]), to = level_of(walk.sigmas[i + 1]);
    const float h = to.log_ratio - from.log_ratio;
    Coefficients c;
    c.clean = to_clean(from.signal, from.noise);
    c.sample_weight = to.noise / from.noise;
    c.clean_weight = to.signal * (std::exp(-h) - 1.0f);
    c.slope = 0.0f;
    if (i > 0) c.slope = 1.0f / ((from.log_ratio - level_of(walk.sigmas[i - 1]).log_ratio) / h);
    c.first_order = options.solver_order == 1 || lowers_order(i, steps);
    coefficients_.push_back(c);
    Evaluation evaluation;
    evaluation.timestep = walk.timesteps[i];
    evaluation.signal = from.signal;
    evaluation.noise = from.noise;
    evaluations_.push_back(evaluation);
  }
}

bool DpmSolverRule::lowers_order(std::size_t index, std::size_t steps) const {
  if (index + 1 != steps) return false;
  return options_.final_sigma == FinalSigma::kZero || (options_.lower_order_final && steps < 15);
}

void DpmSolverRule::allocate() {
  if (options_.solver_order > 1) before_.resize(extent_.total());
}

void DpmSolverRule::step(const StepData& data) {
  const Coefficients& c = coefficients_[data.index];
  denoise(data, c.clean);
  if (c.first_order || !remembers_) {
    combine<2>(data.sample, extent_.total(),
               {{{c.sample_weight, data.sample}, {-c.clean_weight, data.denoised}}});
  } else {
    for (std::size_t i = 0; i < extent_.total(); ++i) {
      const float change = c.slope * (data.denoised[i] - before_[i]);
      data.sample[i] = c.sample_weight * data.sample[i] - c.clean_weight * data.denoised[i] -
                       0.5f * c.clean_weight * change;
    }
  }
  if (options_.solver_order > 1) std::copy_n(data.denoised, extent_.total(), before_.data());
  remembers_ = true;
}

}  // namespace vlrt
