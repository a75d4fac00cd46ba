// Latent consistency models.
#pragma once

#include "vlrt/update_rule.h"

namespace vlrt {

// Luo et al. 2023, "Latent Consistency Models", algorithm 3; diffusers' LCMScheduler.
class LcmRule : public UpdateRule {
 public:
  LcmRule(const NoiseSchedule& schedule, const UpdateOptions& options);
  void step(const StepData& data) override;

 private:
  struct Coefficients {
    Conversion clean;
    float skip, out;
    float next_signal, next_noise;
  };
  std::vector<Coefficients> coefficients_;
};

}  // namespace vlrt
