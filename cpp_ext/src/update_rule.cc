#include "vlrt/update_rule.h"

#include <cmath>
#include <stdexcept>

#include "vlrt/consistency.h"
#include "vlrt/ddim.h"
#include "vlrt/ddpm.h"
#include "vlrt/dpm_solver.h"
#include "vlrt/euler.h"
#include "vlrt/heun.h"
#include "vlrt/lcm.h"
#include "vlrt/plms.h"
#include "vlrt/unclip.h"

namespace vlrt {

void UpdateRule::begin(const Extent& extent) {
  if (extent.images != extent_.images || extent.size != extent_.size) {
    extent_ = extent;
    if (options_.dynamic_threshold) scratch_.resize(extent.size);
    allocate();
  }
  forget();
}

void UpdateRule::denoise(const StepData& data, const Conversion& conversion) {
  convert(data.denoised, data.sample, data.prediction, extent_.total(), conversion);
  if (data.replaced != nullptr) {
    const Known& known = *data.replaced;
    for (std::size_t i = 0; i < extent_.total(); ++i) {
      data.denoised[i] = data.denoised[i] * known.mask[i] + known.sample[i] * (1.0f - known.mask[i]);
    }
  }
  if (options_.dynamic_threshold) {
    for (std::size_t image = 0; image < extent_.images; ++image) {
      threshold_dynamically({data.denoised + image * extent_.size, extent_.size}, scratch_,
                            options_.threshold_ratio, options_.threshold_maximum);
    }
  } else if (options_.clip_range > 0.0f) {
    clamp(data.denoised, extent_.total(), options_.clip_range);
  }
}

Conversion UpdateRule::to_clean(float root_signal, float root_noise) const {
  switch (options_.prediction) {
    case Prediction::kEpsilon:
      return {1.0f, -root_noise, root_signal};
    case Prediction::kVelocity:
      return {root_signal, -root_noise};
    case Prediction::kSample:
      return {0.0f, 1.0f};
  }
  throw std::invalid_argument("no such prediction");
}

Conversion UpdateRule::to_epsilon(float root_signal, float root_noise) const {
  switch (options_.prediction) {
    case Prediction::kEpsilon:
      return {0.0f, 1.0f};
    case Prediction::kVelocity:
      return {root_noise, root_signal};
    case Prediction::kSample:
      return {1.0f, -root_signal, root_noise};
  }
  throw std::invalid_argument("no such prediction");
}

Evaluation UpdateRule::at_signal(double timestep, float signal_power) const {
  Evaluation evaluation;
  evaluation.timestep = timestep;
  evaluation.signal = std::sqrt(signal_power);
  evaluation.noise = std::sqrt(1.0f - signal_power);
  return evaluation;
}

std::vector<std::int64_t> visited_timesteps(const NoiseSchedule& schedule, const UpdateOptions& options) {
  const auto trained = static_cast<std::int64_t>(schedule.train_steps());
  std::vector<std::int64_t> timesteps =
      options.spacing == Spacing::kListed
          ? options.timesteps
          : spaced_timesteps(options.spacing, schedule.train_steps(), options.steps, options.steps_offset);
  for (std::size_t i = 0; i < timesteps.size(); ++i) {
    if (timesteps[i] < 0 || timesteps[i] >= trained) {
      throw std::invalid_argument("timestep " + std::to_string(timesteps[i]) + " lies outside 0 to " +
                                  std::to_string(trained - 1));
    }
    if (options.spacing == Spacing::kListed && i > 0 && timesteps[i] >= timesteps[i - 1]) {
      throw std::invalid_argument("listed timesteps must fall");
    }
  }
  return timesteps;
}

std::unique_ptr<UpdateRule> make_rule(const NoiseSchedule& schedule, const UpdateOptions& options) {
  const std::size_t steps = options.spacing == Spacing::kListed ? options.timesteps.size() : options.steps;
  if (steps == 0 || steps > schedule.train_steps()) {
    throw std::invalid_argument(std::to_string(steps) + " steps, expected 1 to " +
                                std::to_string(schedule.train_steps()));
  }
  UpdateOptions given = options;
  given.steps = steps;
  switch (options.kind) {
    case UpdateKind::kDdim:
      return std::make_unique<DdimRule>(schedule, given);
    case UpdateKind::kDdpm:
      return std::make_unique<DdpmRule>(schedule, given);
    case UpdateKind::kPndm:
      return std::make_unique<PlmsRule>(schedule, given);
    case UpdateKind::kEuler:
      return std::make_unique<EulerRule>(schedule, given, false);
    case UpdateKind::kEulerAncestral:
      return std::make_unique<EulerRule>(schedule, given, true);
    case UpdateKind::kHeun:
      return std::make_unique<HeunRule>(schedule, given);
    case UpdateKind::kDpmSolver:
      return std::make_unique<DpmSolverRule>(schedule, given);
    case UpdateKind::kLcm:
      return std::make_unique<LcmRule>(schedule, given);
    case UpdateKind::kUnclip:
      return std::make_unique<UnclipRule>(schedule, given);
    case UpdateKind::kConsistency:
      return std::make_unique<ConsistencyRule>(schedule, given);
  }
  throw std::invalid_argument("no such update rule");
}

}  // namespace vlrt
