#include "vlrt/denoise.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <string>

namespace vlrt {

namespace {

constexpr std::size_t kFloat = sizeof(float);

struct Running {
  explicit Running(std::atomic_flag& flag) : flag(flag) {
    if (flag.test_and_set()) throw std::logic_error("this denoiser is running already");
  }
  ~Running() { flag.clear(); }
  std::atomic_flag& flag;
};

bool draws_noise(const UpdateRule& rule, const SamplingOptions& options) {
  const auto evaluations = rule.evaluations();
  return options.always_draws ||
         std::any_of(evaluations.begin(), evaluations.end(), [](const Evaluation& e) { return e.draws; });
}

std::string not_finite(std::size_t step, std::size_t steps, double timestep) {
  std::ostringstream message;
  message << "step " << step << " of " << steps << " (timestep " << timestep
          << "): the model gave NaN or infinity";
  return message.str();
}

}  // namespace

Denoiser::Denoiser(const PredictionShape& shape)
    : shape_(shape),
      sample_(shape.images * shape.sample_size() * kFloat),
      denoised_(shape.images * shape.sample_size() * kFloat),
      gradient_(shape.images * shape.sample_size() * kFloat),
      input_(2 * shape.images * shape.sample_size() * kFloat),
      timesteps_(2 * shape.images * sizeof(std::int64_t)),
      real_timesteps_(2 * shape.images * kFloat),
      output_(2 * shape.images * shape.output_size() * kFloat),
      prediction_(shape.images * shape.sample_size() * kFloat),
      variance_(shape.images * shape.sample_size() * kFloat) {
  if (shape.images == 0 || shape.sample_size() == 0) throw std::invalid_argument("an empty sample");
  if (shape.output_channels < shape.channels) {
    throw std::invalid_argument("a prediction needs at least as many channels as the sample");
  }
}

void Denoiser::check(const UpdateRule& rule, const SamplingOptions& options, std::size_t generators,
                     const Known& known, const SamplingCallbacks& callbacks) const {
  const auto evaluations = rule.evaluations();
  if (options.start >= evaluations.size()) {
    throw std::invalid_argument("sampling starts at evaluation " + std::to_string(options.start) + " of " +
                                std::to_string(evaluations.size()));
  }
  if (rule.needs_variance() && !shape_.has_variance()) {
    throw std::invalid_argument("learned variances need twice the channels, got " +
                                std::to_string(shape_.output_channels) + " for samples of " +
                                std::to_string(shape_.channels));
  }
  if (callbacks.gradient && !rule.takes_gradient()) {
    throw std::invalid_argument("this rule cannot follow a classifier's gradient; `ddim` and `ddpm` can");
  }
  if (draws_noise(rule, options) && generators != 1 && generators != shape_.images) {
    throw std::invalid_argument(std::to_string(generators) + " generators for " +
                                std::to_string(shape_.images) + " images, expected one or one for each");
  }
  if (known.sample != nullptr && (known.mask == nullptr || (!options.replaces && known.noise == nullptr))) {
    throw std::invalid_argument("a known picture needs its mask and its noise");
  }
}

void Denoiser::prepare(UpdateRule& rule, const SamplingOptions& options) {
  rule.begin({shape_.images, shape_.sample_size()});
  if (draws_noise(rule, options)) noise_.resize(options.noise_copies * shape_.images * shape_.sample_size());
}

std::size_t Denoiser::run(UpdateRule& rule, const SamplingOptions& options,
                          std::span<TorchGenerator* const> generators, const Known& known,
                          const SamplingCallbacks& callbacks) {
  const Running running(running_);
  check(rule, options, generators.size(), known, callbacks);
  prepare(rule, options);
  const auto evaluations = rule.evaluations();
  const bool has_known = known.sample != nullptr;
  StepData data;
  data.sample = sample();
  data.denoised = denoised();
  data.variance = rule.needs_variance() ? variance_.as<float>() : nullptr;
  data.gradient = callbacks.gradient ? gradient() : nullptr;
  data.replaced = has_known && options.replaces ? &known : nullptr;
  for (std::size_t index = options.start; index < evaluations.size(); ++index) {
    if (callbacks.should_cancel && callbacks.should_cancel()) return index - options.start;
    data.index = index;
    data.prediction = predict(rule, index, options, callbacks);
    if (callbacks.gradient) callbacks.gradient(index);
    if (options.always_draws || evaluations[index].draws) draw(generators, options.noise_copies);
    data.noise = noise_.data();
    rule.step(data);
    if (has_known && !options.replaces) put_back(known, rule, index);
    if (callbacks.on_step) callbacks.on_step(index + 1 - options.start, evaluations.size() - options.start);
  }
  return evaluations.size() - options.start;
}

void Denoiser::fill_input(const Evaluation& evaluation, std::size_t copies) {
  const std::size_t total = shape_.images * shape_.sample_size();
  float* input = model_input();
  if (evaluation.divisor == 1.0f) {
    std::copy_n(sample(), total, input);
  } else {
    for (std::size_t i = 0; i < total; ++i) input[i] = sample()[i] / evaluation.divisor;
  }
  if (copies == 2) std::copy_n(input, total, input + total);
  std::fill_n(timesteps(), copies * shape_.images, static_cast<std::int64_t>(evaluation.timestep));
  std::fill_n(real_timesteps(), copies * shape_.images, static_cast<float>(evaluation.timestep));
}

const float* Denoiser::predict(const UpdateRule& rule, std::size_t index, const SamplingOptions& options,
                               const SamplingCallbacks& callbacks) {
  const auto evaluations = rule.evaluations();
  const Evaluation& evaluation = evaluations[index];
  const bool guided = options.guidance.active(index, evaluations.size());
  const std::size_t images = shape_.images, half = images * shape_.output_size();
  fill_input(evaluation, guided && !options.two_passes ? 2 : 1);
  if (guided && options.two_passes) {
    callbacks.predict({Part::kUnconditional, images, index});
    callbacks.predict({Part::kConditional, images, index});
  } else if (guided) {
    callbacks.predict({Part::kBoth, 2 * images, index});
  } else {
    callbacks.predict({Part::kConditional, images, index});
  }
  const float* conditional = model_output() + half;
  if (!all_finite({conditional, half}) || (guided && !all_finite({model_output(), half}))) {
    throw PredictionError(
        not_finite(index + 1 - options.start, evaluations.size() - options.start, evaluation.timestep));
  }
  if (rule.needs_variance()) {
    take_channels(variance_.as<float>(), conditional, shape_, shape_.channels);
  }
  float* prediction = prediction_.as<float>();
  if (guided) {
    guide(prediction, model_output(), conditional, shape_, options.guidance);
  } else if (shape_.output_channels == shape_.channels) {
    return conditional;
  } else {
    take_channels(prediction, conditional, shape_, 0);
  }
  return prediction;
}

void Denoiser::draw(std::span<TorchGenerator* const> generators, std::size_t copies) {
  const std::size_t size = shape_.sample_size();
  if (generators.size() == 1) return generators[0]->randn({noise_.data(), noise_.size()});
  // Each image's copies are drawn at once and its own kept; the next image's overwrite the rest.
  for (std::size_t image = 0; image < shape_.images; ++image) {
    generators[image]->randn({noise_.data() + image * size, copies * size});
  }
}

// What is known gets the noise of the level that the step has reached.
void Denoiser::put_back(const Known& known, const UpdateRule& rule, std::size_t index) {
  const auto evaluations = rule.evaluations();
  const bool last = index + 1 == evaluations.size();
  const float signal = last ? 1.0f : evaluations[index + 1].signal;
  const float noise = last ? 0.0f : evaluations[index + 1].noise;
  for (std::size_t i = 0; i < shape_.images * shape_.sample_size(); ++i) {
    const float noised = signal * known.sample[i] + noise * known.noise[i];
    sample()[i] = (1.0f - known.mask[i]) * noised + known.mask[i] * sample()[i];
  }
}

}  // namespace vlrt
