// The sampling loop: predict, guide, update, preview, cancel. It knows no model and no engine: it fills its
// buffers and calls back for one forward pass over them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <vector>

#include "vlrt/aligned.h"
#include "vlrt/guidance.h"
#include "vlrt/noise.h"
#include "vlrt/update_rule.h"

namespace vlrt {

// The model gave NaN or infinity; the message says at which step.
struct PredictionError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Which rows one call of the model holds: unconditional rows stand before conditional ones.
enum class Part { kBoth, kUnconditional, kConditional };

struct ModelCall {
  Part part;
  std::size_t rows;
  std::size_t index;  // of the evaluation in the whole schedule
};

struct SamplingOptions {
  GuidanceOptions guidance;
  bool two_passes = false;  // unconditional and conditional rows one after the other: half the activations
  std::size_t start = 0;    // first evaluation; later ones for pictures that are only partly noised
  std::size_t noise_copies = 1;  // rows drawn per image; a reference that carries both guidance rows draws 2
  bool always_draws = false;     // also in steps that add none, as GLIDE's sampler does
  bool replaces = false;         // what is known replaces the clean sample, rather than the next one
};

struct SamplingCallbacks {
  std::function<void(const ModelCall&)> predict;
  std::function<void(std::size_t index)> gradient;                 // fills `gradient()`; may be empty
  std::function<void(std::size_t done, std::size_t all)> on_step;  // may be empty
  std::function<bool()> should_cancel;                             // may be empty
};

// Buffers of a denoiser and the loop over them, allocated once: nothing is allocated after the first step.
// One run at a time; a run that throws leaves the denoiser ready for the next.
class Denoiser {
 public:
  explicit Denoiser(const PredictionShape& shape);

  // Turns `sample()` from noise into pictures; returns the number of evaluations done, fewer than there are
  // where `should_cancel` became true (asked before each). Fresh noise comes from one generator for all
  // images, or from one for each. `known.sample` may be null.
  std::size_t run(UpdateRule& rule, const SamplingOptions& options,
                  std::span<TorchGenerator* const> generators, const Known& known,
                  const SamplingCallbacks& callbacks);

  const PredictionShape& shape() const { return shape_; }
  float* sample() { return sample_.as<float>(); }      // [images, channels, pixels]
  float* denoised() { return denoised_.as<float>(); }  // [images, channels, pixels], for previews
  float* gradient() { return gradient_.as<float>(); }  // [images, channels, pixels]
  // [2 images, channels, pixels]: parts alone read the first half.
  float* model_input() { return input_.as<float>(); }
  std::int64_t* timesteps() { return timesteps_.as<std::int64_t>(); }  // [2 images]
  float* real_timesteps() { return real_timesteps_.as<float>(); }      // [2 images]
  // [2 images, output_channels, pixels]: conditional rows always in the second half, whether or not the
  // first is used.
  float* model_output() { return output_.as<float>(); }

 private:
  void check(const UpdateRule& rule, const SamplingOptions& options, std::size_t generators,
             const Known& known, const SamplingCallbacks& callbacks) const;
  void prepare(UpdateRule& rule, const SamplingOptions& options);
  void fill_input(const Evaluation& evaluation, std::size_t copies);
  const float* predict(const UpdateRule& rule, std::size_t index, const SamplingOptions& options,
                       const SamplingCallbacks& callbacks);
  void draw(std::span<TorchGenerator* const> generators, std::size_t copies);
  void put_back(const Known& known, const UpdateRule& rule, std::size_t index);

  PredictionShape shape_;
  AlignedBuffer sample_, denoised_, gradient_, input_, timesteps_, real_timesteps_, output_;
  AlignedBuffer prediction_, variance_;
  std::vector<float> noise_;
  std::atomic_flag running_ = ATOMIC_FLAG_INIT;
};

}  // namespace vlrt
