// A multistep solver of the diffusion equation in log signal-to-noise.
#pragma once

#include "vlrt/update_rule.h"

namespace vlrt {

// DPM-Solver++ 1 and 2M, midpoint form (Lu et al. 2022b, algorithm 2); diffusers' DPMSolverMultistepScheduler
// of algorithm type `dpmsolver++`.
class DpmSolverRule : public UpdateRule {
 public:
  DpmSolverRule(const NoiseSchedule& schedule, const UpdateOptions& options);
  void step(const StepData& data) override;

 protected:
  void allocate() override;
  void forget() override { remembers_ = false; }

 private:
  struct Coefficients {
    Conversion clean;
    float sample_weight, clean_weight;
    float slope;  // 1 / r_0 of the second order
    bool first_order;
  };
  bool lowers_order(std::size_t index, std::size_t steps) const;
  std::vector<Coefficients> coefficients_;
  std::vector<float> before_;  // the clean sample of the step before
  bool remembers_ = false;
};

}  // namespace vlrt
