// Ancestral sampling from the posterior of the forward process.
#pragma once

#include "vlrt/update_rule.h"

namespace vlrt {

// Ho, Jain & Abbeel 2020, equation 7: mean = clean_weight * x_0 + sample_weight * x_t, and a variance that is
// fixed or, in [log_small, log_large], learned (Nichol & Dhariwal 2021, equation 15). With a gradient the
// mean moves by variance * gradient (Dhariwal & Nichol 2021, algorithm 1).
class PosteriorRule : public UpdateRule {
 public:
  bool takes_gradient() const override { return true; }
  bool needs_variance() const override;
  void step(const StepData& data) override;

 protected:
  struct Posterior {
    Conversion clean;
    float clean_weight, sample_weight;
    float deviation;             // of fixed variances
    float log_small, log_large;  // of learned ones
  };
  using UpdateRule::UpdateRule;
  void allocate() override;
  void fill_deviations(const StepData& data, const Posterior& p);
  std::vector<Posterior> posteriors_;

 private:
  std::vector<float> deviations_;
};

// diffusers' DDPMScheduler.
class DdpmRule : public PosteriorRule {
 public:
  DdpmRule(const NoiseSchedule& schedule, const UpdateOptions& options);
};

}  // namespace vlrt
