// Heun's second-order steps over noise levels.
#pragma once

#include "vlrt/euler.h"

namespace vlrt {

// Karras et al. 2022, algorithm 1 without churn; diffusers' HeunDiscreteScheduler: two evaluations a step,
// one in the last.
class HeunRule : public SigmaRule {
 public:
  HeunRule(const NoiseSchedule& schedule, const UpdateOptions& options);
  std::size_t order() const override { return 2; }
  void step(const StepData& data) override;

 protected:
  void allocate() override;
  void forget() override { corrects_ = false; }

 private:
  void predict(const StepData& data);
  void correct(const StepData& data);
  std::vector<float> sigmas_;  // per evaluation, and the end
  std::vector<float> derivative_, before_;
  bool corrects_ = false;
};

}  // namespace vlrt
