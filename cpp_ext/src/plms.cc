#include "vlrt/plms.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace vlrt {

PlmsRule::PlmsRule(const NoiseSchedule& schedule, const UpdateOptions& options)
    : UpdateRule(options),
      signals_(schedule.alphas_cumprod().begin(), schedule.alphas_cumprod().end()),
      final_signal_(options.set_alpha_to_one ? 1.0f : signals_[0]),
      stride_(static_cast<std::int64_t>(schedule.train_steps() / options.steps)) {
  if (options.spacing == Spacing::kListed) {
    throw std::invalid_argument("the rule `pndm` needs evenly spaced timesteps, not listed ones");
  }
  if (options.prediction == Prediction::kSample) {
    throw std::invalid_argument("the rule `pndm` takes predictions of noise or velocity");
  }
  auto rising = visited_timesteps(schedule, options);
  std::reverse(rising.begin(), rising.end());
  if (!options.skip_prk_steps) plan_runge_kutta(rising);
  plan_multistep(rising);
}

void PlmsRule::visit(std::int64_t timestep) {
  if (timestep < 0 || timestep >= static_cast<std::int64_t>(signals_.size())) {
    throw std::invalid_argument("the rule `pndm` would visit timestep " + std::to_string(timestep) +
                                "; take other steps");
  }
  timesteps_.push_back(timestep);
  evaluations_.push_back(at_signal(static_cast<double>(timestep), signal_at(timestep)));
}

void PlmsRule::plan_runge_kutta(const std::vector<std::int64_t>& rising) {
  if (rising.size() < kOrder) {
    throw std::invalid_argument("the rule `pndm` with Runge-Kutta start needs at least 4 steps");
  }
  // The noisiest four timesteps and the midpoints below the next, each pair visited twice.
  std::vector<std::int64_t> pairs;
  for (std::size_t i = rising.size() - kOrder; i < rising.size(); ++i) {
    pairs.push_back(rising[i]);
    pairs.push_back(rising[i] + stride_ / 2);
  }
  pairs.pop_back();
  std::vector<std::int64_t> doubled;
  for (const std::int64_t t : pairs) doubled.insert(doubled.end(), {t, t});
  for (std::size_t i = doubled.size() - 1; i-- > 1;) visit(doubled[i]);
  runge_kutta_steps_ = timesteps_.size();
}

void PlmsRule::plan_multistep(const std::vector<std::int64_t>& rising) {
  const std::size_t count = rising.size();
  if (!options_.skip_prk_steps) {
    for (std::size_t i = count - 3; i-- > 0;) visit(rising[i]);
    return;
  }
  visit(rising[count - 1]);
  for (int twice = 0; twice < 2 && count > 1; ++twice) visit(rising[count - 2]);
  for (std::size_t i = count < 2 ? 0 : count - 2; i-- > 0;) visit(rising[i]);
}

float PlmsRule::signal_at(std::int64_t timestep) const {
  return timestep >= 0 ? signals_[static_cast<std::size_t>(timestep)] : final_signal_;
}

void PlmsRule::allocate() {
  for (auto& buffer : history_) buffer.resize(extent_.total());
  mixed_.resize(extent_.total());
  start_.resize(extent_.total());
}

void PlmsRule::forget() {
  counter_ = 0;
  remembered_ = 0;
}

void PlmsRule::remember(const float* prediction) {
  std::copy_n(prediction, extent_.total(), history_[remembered_++ % kOrder].data());
}

const float* PlmsRule::past(std::size_t back) const {
  return history_[(remembered_ - 1 - back) % kOrder].data();
}

void PlmsRule::step(const StepData& data) {
  const Evaluation& at = evaluations_[data.index];
  denoise(data, to_clean(at.signal, at.noise));  // for previews; the rule itself has no use of it
  counter_ < runge_kutta_steps_ ? step_runge_kutta(data) : step_multistep(data);
  ++counter_;
}

void PlmsRule::step_runge_kutta(const StepData& data) {
  const std::size_t stage = counter_ % 4, count = extent_.total();
  const std::int64_t timestep = timesteps_[counter_ - stage];
  const std::int64_t previous = timesteps_[data.index] - (counter_ % 2 == 0 ? stride_ / 2 : 0);
  const float weight = stage == 0 || stage == 3 ? 1.0f / 6.0f : 1.0f / 3.0f;
  if (stage == 0) {
    remember(data.prediction);
    std::copy_n(data.sample, count, start_.data());
    combine<1>(mixed_.data(), count, {{{weight, data.prediction}}});
  } else {
    combine<2>(mixed_.data(), count, {{{1.0f, mixed_.data()}, {weight, data.prediction}}});
  }
  move(data, start_.data(), timestep, previous, stage == 3 ? mixed_.data() : data.prediction);
}

void PlmsRule::step_multistep(const StepData& data) {
  std::int64_t timestep = timesteps_[data.index], previous = timestep - stride_;
  const float* from = data.sample;
  if (counter_ == 1) {
    // The first timestep again, from its own sample, with the mean of both predictions.
    previous = timestep;
    timestep += stride_;
    combine<2>(mixed_.data(), extent_.total(), {{{0.5f, data.prediction}, {0.5f, past(0)}}});
    from = start_.data();
  } else {
    remember(data.prediction);
    if (counter_ == 0) std::copy_n(data.sample, extent_.total(), start_.data());
    mix(data.prediction);
  }
  move(data, from, timestep, previous, mixed_.data());
}

// Adams-Bashforth weights of as many predictions as there are.
void PlmsRule::mix(const float* prediction) {
  const std::size_t count = extent_.total();
  switch (std::min(remembered_, kOrder)) {
    case 1:
      std::copy_n(prediction, count, mixed_.data());
      break;
    case 2:
      combine<2>(mixed_.data(), count, {{{3.0f / 2, past(0)}, {-1.0f / 2, past(1)}}});
      break;
    case 3:
      combine<3>(mixed_.data(), count,
                 {{{23.0f / 12, past(0)}, {-16.0f / 12, past(1)}, {5.0f / 12, past(2)}}});
      break;
    default:
      combine<4>(
          mixed_.data(), count,
          {{{55.0f / 24, past(0)}, {-59.0f / 24, past(1)}, {37.0f / 24, past(2)}, {-9.0f / 24, past(3)}}});
  }
}

// Equation 9.
void PlmsRule::move(const StepData& data, const float* from, std::int64_t timestep, std::int64_t previous,
                    const float* prediction) {
  if (timestep >= static_cast<std::int64_t>(signals_.size())) {
    throw std::invalid_argument("the rule `pndm` left the schedule at timestep " + std::to_string(timestep));
  }
  const float signal = signal_at(timestep), next = signal_at(previous);
  const float noise = 1.0f - signal, next_noise = 1.0f - next;
  const float scale = std::sqrt(next / signal);
  const float divisor = signal * std::sqrt(next_noise) + std::sqrt(signal * noise * next);
  const float weight = (next - signal) / divisor;
  const Conversion epsilon = to_epsilon(std::sqrt(signal), std::sqrt(noise));
  for (std::size_t i = 0; i < extent_.total(); ++i) {
    const float direction = (epsilon.x_weight * from[i] + epsilon.y_weight * prediction[i]) / epsilon.divisor;
    data.sample[i] = scale * from[i] - weight * direction;
  }
}

}  // namespace vlrt
