// Two steps of a consistency model.
#pragma once

#include "vlrt/update_rule.h"

namespace vlrt {

// Song et al. 2023, "Consistency Models", algorithm 1, as the consistency decoder of DALL-E 3 runs it: two
// evaluations at timesteps 1008 and 512 of 1024; diffusers' ConsistencyDecoderScheduler.
class ConsistencyRule : public UpdateRule {
 public:
  ConsistencyRule(const NoiseSchedule& schedule, const UpdateOptions& options);
  void step(const StepData& data) override;

 private:
  struct Coefficients {
    Conversion clean;
    float next_signal, next_noise;
  };
  std::vector<Coefficients> coefficients_;
};

}  // namespace vlrt
