// Classifier-free guidance.
#pragma once

#include <cstddef>
#include <span>

namespace vlrt {

// Ho & Salimans 2022: unconditional + scale * (conditional - unconditional). `rescale` brings the deviation
// of a guided prediction back towards the conditional one's (Lin et al. 2023, equations 15 and 16; diffusers'
// `rescale_noise_cfg`). `start` and `stop` are shares of the evaluations outside which the conditional
// prediction is taken alone (Kynkaanniemi et al. 2024).
struct GuidanceOptions {
  float scale = 1.0f;
  float rescale = 0.0f;
  double start = 0.0;
  double stop = 1.0;
  std::size_t channels = 0;  // guided ones, the first; 0: all of the mean

  // Without guidance one evaluation suffices.
  bool active(std::size_t evaluation, std::size_t evaluations) const;
};

// Sizes of one sample and of what a model says about it: `output_channels` may be more than `channels`, the
// second `channels` of them being learned variances.
struct PredictionShape {
  std::size_t images = 1;
  std::size_t channels = 1;
  std::size_t output_channels = 1;
  std::size_t pixels = 1;

  std::size_t sample_size() const { return channels * pixels; }
  std::size_t output_size() const { return output_channels * pixels; }
  bool has_variance() const { return output_channels >= 2 * channels; }
};

// Writes `prediction` [images, channels, pixels] from both outputs [images, output_channels, pixels].
// Channels that are not guided are the conditional ones.
void guide(float* prediction, const float* unconditional, const float* conditional,
           const PredictionShape& shape, const GuidanceOptions& options);

// Gathers `channels` channels from `first` on of every image.
void take_channels(float* out, const float* output, const PredictionShape& shape, std::size_t first);

}  // namespace vlrt
