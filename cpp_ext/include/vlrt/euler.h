// Euler steps over noise levels, and what the rules over noise levels have in common.
#pragma once

#include "vlrt/update_rule.h"

namespace vlrt {

// Noise levels that a rule walks down, x = x_0 + sigma * z (Karras et al. 2022); the last one ends the walk.
struct SigmaWalk {
  std::vector<double> timesteps;
  std::vector<float> sigmas;  // one more than timesteps
};

// Levels at the timesteps of the options, interpolated, or Karras' levels between the first and the last.
SigmaWalk sigma_walk(const NoiseSchedule& schedule, const UpdateOptions& options);

class SigmaRule : public UpdateRule {
 protected:
  using UpdateRule::UpdateRule;
  Conversion clean_at(float sigma) const;
  Evaluation at_sigma(double timestep, float sigma) const;
  void set_init_noise(float largest);
};

// Karras et al. 2022, algorithm 1 without churn; diffusers' EulerDiscreteScheduler. Ancestral: k-diffusion's
// `sample_euler_ancestral`, diffusers' EulerAncestralDiscreteScheduler.
class EulerRule : public SigmaRule {
 public:
  EulerRule(const NoiseSchedule& schedule, const UpdateOptions& options, bool ancestral);
  void step(const StepData& data) override;

 private:
  struct Coefficients {
    float sigma, change, fresh;
  };
  std::vector<Coefficients> coefficients_;
};

}  // namespace vlrt
