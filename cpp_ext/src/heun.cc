#include "vlrt/heun.h"

#include <algorithm>

namespace vlrt {

HeunRule::HeunRule(const NoiseSchedule& schedule, const UpdateOptions& options) : SigmaRule(options) {
  UpdateOptions walked = options;
  walked.final_sigma = FinalSigma::kZero;
  const SigmaWalk walk = sigma_walk(schedule, walked);
  for (std::size_t i = 0; i < walk.timesteps.size(); ++i) {
    for (int twice = i == 0 ? 1 : 0; twice < 2; ++twice) {
      evaluations_.push_back(at_sigma(walk.timesteps[i], walk.sigmas[i]));
      sigmas_.push_back(walk.sigmas[i]);
    }
  }
  sigmas_.push_back(walk.sigmas.back());
  set_init_noise(walk.sigmas.front());
}

void HeunRule::allocate() {
  derivative_.resize(extent_.total());
  before_.resize(extent_.total());
}

void HeunRule::step(const StepData& data) {
  denoise(data, clean_at(sigmas_[data.index]));
  corrects_ ? correct(data) : predict(data);
  corrects_ = !corrects_;
}

void HeunRule::predict(const StepData& data) {
  const float sigma = sigmas_[data.index], change = sigmas_[data.index + 1] - sigma;
  std::copy_n(data.sample, extent_.total(), before_.data());
  for (std::size_t i = 0; i < extent_.total(); ++i) {
    derivative_[i] = (data.sample[i] - data.denoised[i]) / sigma;
    data.sample[i] += derivative_[i] * change;
  }
}

void HeunRule::correct(const StepData& data) {
  const float sigma = sigmas_[data.index], change = sigma - sigmas_[data.index - 1];
  for (std::size_t i = 0; i < extent_.total(); ++i) {
    const float derivative = (data.sample[i] - data.denoised[i]) / sigma;
    data.sample[i] = before_[i] + (derivative_[i] + derivative) / 2.0f * change;
  }
}

}  // namespace vlrt
