// Pseudo linear multistep sampling.
#pragma once

#include <array>

#include "vlrt/update_rule.h"

namespace vlrt {

// Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models", equations 9, 12 and 13; diffusers'
// PNDMScheduler. Without the Runge-Kutta start (`skip_prk_steps`) it is the PLMS sampler of latent diffusion,
// which repeats the second timestep instead.
class PlmsRule : public UpdateRule {
 public:
  PlmsRule(const NoiseSchedule& schedule, const UpdateOptions& options);
  void step(const StepData& data) override;

 protected:
  void allocate() override;
  void forget() override;

 private:
  void plan_multistep(const std::vector<std::int64_t>& rising);
  void plan_runge_kutta(const std::vector<std::int64_t>& rising);
  void visit(std::int64_t timestep);
  void step_runge_kutta(const StepData& data);
  void step_multistep(const StepData& data);
  void remember(const float* prediction);
  const float* past(std::size_t back) const;
  void mix(const float* prediction);
  void move(const StepData& data, const float* from, std::int64_t timestep, std::int64_t previous,
            const float* prediction);
  float signal_at(std::int64_t timestep) const;

  static constexpr std::size_t kOrder = 4;
  std::vector<float> signals_;
  float final_signal_;
  std::int64_t stride_;
  std::vector<std::int64_t> timesteps_;
  std::size_t runge_kutta_steps_ = 0;

  std::array<std::vector<float>, kOrder> history_;
  std::vector<float> mixed_, start_;
  std::size_t remembered_ = 0;  // predictions since the run began
  std::size_t counter_ = 0;     // evaluations since the run began
};

}  // namespace vlrt
