// Denoising diffusion implicit models.
#pragma once

#include "vlrt/update_rule.h"

namespace vlrt {

// Song, Meng & Ermon 2021, equation 12, with the noise scale eta of equation 16; diffusers' DDIMScheduler.
// With a gradient: guided-diffusion's `condition_score`, the noise moves against the gradient.
class DdimRule : public UpdateRule {
 public:
  DdimRule(const NoiseSchedule& schedule, const UpdateOptions& options);
  bool takes_gradient() const override { return true; }
  void step(const StepData& data) override;

 private:
  struct Coefficients {
    Conversion clean, epsilon;
    float root_signal, root_noise;
    float clean_weight, epsilon_weight, deviation;
  };
  void follow(const StepData& data, const Coefficients& c);
  void update(const StepData& data, const Coefficients& c);
  std::vector<Coefficients> coefficients_;
};

}  // namespace vlrt
