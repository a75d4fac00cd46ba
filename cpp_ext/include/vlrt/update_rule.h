// From a noisy sample and a prediction to the next, less noisy sample.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "vlrt/elementwise.h"
#include "vlrt/schedule.h"

namespace vlrt {

enum class Prediction { kEpsilon, kVelocity, kSample };
enum class Variance { kFixedSmall, kFixedSmallLog, kFixedLarge, kLearned, kLearnedRange };
enum class FinalSigma { kZero, kSigmaMin };
enum class UpdateKind {
  kDdim,
  kDdpm,
  kPndm,
  kEuler,
  kEulerAncestral,
  kHeun,
  kDpmSolver,
  kLcm,
  kUnclip,
  kConsistency
};

// Everything a rule can be told; each reads what it knows.
struct UpdateOptions {
  UpdateKind kind = UpdateKind::kDdim;
  std::size_t steps = 50;
  Prediction prediction = Prediction::kEpsilon;
  Variance variance = Variance::kFixedSmall;
  Spacing spacing = Spacing::kLeading;
  std::vector<std::int64_t> timesteps;  // of Spacing::kListed, the largest first
  std::int64_t steps_offset = 0;
  bool set_alpha_to_one = true;
  float clip_range = 0.0f;  // of a predicted clean sample; 0: none
  bool dynamic_threshold = false;
  float threshold_ratio = 0.995f;
  float threshold_maximum = 1.0f;
  float eta = 0.0f;
  bool rederive_epsilon = false;  // DDIM: the noise is taken from the bounded clean sample
  bool skip_prk_steps = true;
  bool karras_sigmas = false;
  FinalSigma final_sigma = FinalSigma::kZero;
  std::size_t solver_order = 2;
  bool lower_order_final = true;
  std::size_t original_steps = 50;
  float timestep_scaling = 10.0f;
};

// One call of the model. x_t = signal * x_0 + noise * z at its level.
struct Evaluation {
  double timestep = 0.0;
  float divisor = 1.0f;  // of the sample, before the model sees it
  float signal = 1.0f;
  float noise = 0.0f;
  bool draws = false;  // whether the step after it adds fresh noise
};

struct Extent {
  std::size_t images = 1;
  std::size_t size = 1;  // of one sample
  std::size_t total() const { return images * size; }
};

// What is known of the picture: inside the painted region `mask` is 1.
struct Known {
  const float* sample = nullptr;  // [images, size], clean
  const float* noise = nullptr;   // [images, size]; unused where the clean sample is replaced
  const float* mask = nullptr;    // [images, size]
};

// Arrays of one step, each [images, size].
struct StepData {
  std::size_t index = 0;              // of the evaluation
  float* sample = nullptr;            // x_t, becomes the next one
  const float* prediction = nullptr;  // after guidance
  const float* variance = nullptr;    // learned variances, raw; null where the model has none
  const float* gradient = nullptr;    // of a classifier's log-probability by x_t; null: none
  const float* noise = nullptr;       // fresh; read where the evaluation draws
  float* denoised = nullptr;          // receives the predicted clean sample
  const Known* replaced = nullptr;    // what replaces the clean sample outside the mask; null: nothing
};

// One update rule over one schedule. Coefficients are computed once; `begin` allocates what is remembered
// between steps.
class UpdateRule {
 public:
  virtual ~UpdateRule() = default;

  std::span<const Evaluation> evaluations() const { return evaluations_; }
  // Deviation of the noise that sampling starts from.
  float init_noise_sigma() const { return init_noise_sigma_; }
  // Evaluations of one whole step, by which `strength` counts.
  virtual std::size_t order() const { return 1; }
  // Whether a classifier's gradient can be followed.
  virtual bool takes_gradient() const { return false; }
  virtual bool needs_variance() const { return false; }

  void begin(const Extent& extent);
  virtual void step(const StepData& data) = 0;

 protected:
  explicit UpdateRule(const UpdateOptions& options) : options_(options) {}

  // Buffers of a run; called once per extent.
  virtual void allocate() {}
  // Forgets the steps of the run before.
  virtual void forget() {}
  // data.denoised = conversion of sample and prediction, then what is known, then the bound.
  void denoise(const StepData& data, const Conversion& conversion);

  // x_t = root_signal * x_0 + root_noise * z: the clean sample, or the noise, from x_t and the prediction.
  Conversion to_clean(float root_signal, float root_noise) const;
  Conversion to_epsilon(float root_signal, float root_noise) const;
  // Levels that are given by cumulative signal power.
  Evaluation at_signal(double timestep, float signal_power) const;

  const UpdateOptions options_;
  std::vector<Evaluation> evaluations_;
  float init_noise_sigma_ = 1.0f;
  Extent extent_{0, 0};

 private:
  std::vector<float> scratch_;
};

// The integer timesteps that the options ask for, the largest first.
std::vector<std::int64_t> visited_timesteps(const NoiseSchedule& schedule, const UpdateOptions& options);

// Throws std::invalid_argument where options do not go with each other or with the schedule.
std::unique_ptr<UpdateRule> make_rule(const NoiseSchedule& schedule, const UpdateOptions& options);

}  // namespace vlrt
