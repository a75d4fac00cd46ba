#include "vlrt/schedule.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>
#include <set>
#include <stdexcept>

namespace vlrt {

namespace {

// As `torch.linspace` in single precision: from both ends towards the middle.
std::vector<float> linspace(double first, double last, std::size_t count) {
  const auto start = static_cast<float>(first), end = static_cast<float>(last);
  if (count == 1) return {start};
  const float step = (end - start) / static_cast<float>(count - 1);
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    const double offset = static_cast<double>(step) * static_cast<double>(i < count / 2 ? i : count - 1 - i);
    values[i] = static_cast<float>(i < count / 2 ? static_cast<double>(start) + offset
                                                 : static_cast<double>(end) - offset);
  }
  return values;
}

// Nichol & Dhariwal 2021, equation 17, with their bound of 0.999.
std::vector<float> squared_cosine(std::size_t count) {
  const auto signal = [count](std::size_t i) {
    const double t = static_cast<double>(i) / static_cast<double>(count);
    const double cosine = std::cos((t + 0.008) / 1.008 * std::numbers::pi / 2);
    return cosine * cosine;
  };
  std::vector<float> betas(count);
  for (std::size_t i = 0; i < count; ++i) {
    betas[i] = static_cast<float>(std::min(1.0 - signal(i + 1) / signal(i), 0.999));
  }
  return betas;
}

std::vector<float> make_betas(const ScheduleOptions& options) {
  switch (options.betas) {
    case Betas::kLinear:
      return linspace(options.beta_start, options.beta_end, options.train_steps);
    case Betas::kScaledLinear: {
      std::vector<float> betas =
          linspace(std::sqrt(options.beta_start), std::sqrt(options.beta_end), options.train_steps);
      for (float& beta : betas) beta *= beta;
      return betas;
    }
    case Betas::kSquaredCosine:
      return squared_cosine(options.train_steps);
    case Betas::kExplicit:
      return {options.values.begin(), options.values.end()};
  }
  throw std::invalid_argument("no such noise schedule");
}

std::vector<float> cumulative_signal(std::span<const float> betas) {
  std::vector<float> signal(betas.size());
  double product = 1.0;
  for (std::size_t i = 0; i < betas.size(); ++i) {
    product *= static_cast<double>(1.0f - betas[i]);
    signal[i] = static_cast<float>(product);
  }
  return signal;
}

// Lin et al. 2023, algorithm 1.
void rescale_to_zero_terminal(std::vector<float>& betas) {
  std::vector<float> root = cumulative_signal(betas);
  for (float& value : root) value = std::sqrt(value);
  const float first = root.front(), last = root.back();
  const float scale = first / (first - last);
  for (float& value : root) value = (value - last) * scale;
  float before = 1.0f;
  for (std::size_t i = 0; i < betas.size(); ++i) {
    const float signal = root[i] * root[i];
    betas[i] = 1.0f - (i == 0 ? signal : signal / before);
    before = signal;
  }
}

std::vector<std::int64_t> descending(const std::set<std::int64_t>& timesteps) {
  return {timesteps.rbegin(), timesteps.rend()};
}

std::size_t parse_count(const std::string& text) {
  std::size_t count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc() || end != text.data() + text.size() || count == 0) {
    throw std::invalid_argument("`" + text + "` is no count of timesteps");
  }
  return count;
}

std::vector<std::size_t> parse_counts(const std::string& text) {
  std::vector<std::size_t> counts;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const std::size_t comma = std::min(text.find(',', begin), text.size());
    std::string part = text.substr(begin, comma - begin);
    std::erase(part, ' ');
    counts.push_back(parse_count(part));
    begin = comma + 1;
  }
  return counts;
}

std::vector<std::int64_t> strided(std::size_t train_steps, std::size_t wanted) {
  for (std::size_t stride = 1; stride < train_steps; ++stride) {
    if ((train_steps + stride - 1) / stride != wanted) continue;
    std::set<std::int64_t> timesteps;
    for (std::size_t t = 0; t < train_steps; t += stride) timesteps.insert(static_cast<std::int64_t>(t));
    return descending(timesteps);
  }
  throw std::invalid_argument("no integer stride visits " + std::to_string(wanted) + " of " +
                              std::to_string(train_steps) + " timesteps");
}

std::set<std::int64_t> sectioned(const std::vector<std::size_t>& counts, std::size_t train_steps) {
  const std::size_t base = train_steps / counts.size(), extra = train_steps % counts.size();
  std::set<std::int64_t> timesteps;
  std::size_t start = 0;
  for (std::size_t section = 0; section < counts.size(); ++section) {
    const std::size_t size = base + (section < extra ? 1 : 0), count = counts[section];
    if (size < count) {
      throw std::invalid_argument("a section of " + std::to_string(size) + " timesteps has no " +
                                  std::to_string(count) + " to visit");
    }
    const double stride = count <= 1 ? 1.0 : static_cast<double>(size - 1) / static_cast<double>(count - 1);
    double place = 0.0;
    for (std::size_t i = 0; i < count; ++i, place += stride) {
      timesteps.insert(static_cast<std::int64_t>(start) + static_cast<std::int64_t>(std::nearbyint(place)));
    }
    start += size;
  }
  return timesteps;
}

}  // namespace

NoiseSchedule::NoiseSchedule(const ScheduleOptions& options)
    : zero_terminal_snr_(options.zero_terminal_snr),
      squared_cosine_(options.betas == Betas::kSquaredCosine),
      betas_(make_betas(options)) {
  if (betas_.empty()) throw std::invalid_argument("a noise schedule needs at least one timestep");
  const auto sound = [](float beta) { return beta > 0.0f && beta <= 1.0f; };
  if (!std::all_of(betas_.begin(), betas_.end(), sound)) {
    throw std::invalid_argument("variances of the noise schedule must lie in (0, 1]");
  }
  if (zero_terminal_snr_) rescale_to_zero_terminal(betas_);
  alphas_cumprod_ = cumulative_signal(betas_);
}

std::vector<float> NoiseSchedule::sigmas() const {
  std::vector<float> sigmas(alphas_cumprod_.size());
  for (std::size_t i = 0; i < sigmas.size(); ++i) {
    const bool last = i + 1 == sigmas.size();
    const float signal = zero_terminal_snr_ && last ? 0x1p-24f : alphas_cumprod_[i];
    sigmas[i] = std::sqrt((1.0f - signal) / signal);
  }
  return sigmas;
}

std::vector<double> spaced_real_timesteps(Spacing spacing, std::size_t train_steps, std::size_t steps,
                                          std::int64_t offset) {
  std::vector<double> timesteps(steps);
  const auto trained = static_cast<double>(train_steps), count = static_cast<double>(steps);
  for (std::size_t i = 0; i < steps; ++i) {
    const auto from_last = static_cast<double>(steps - 1 - i);
    if (spacing == Spacing::kLinspace) {
      timesteps[i] = steps == 1 ? 0.0 : from_last * ((trained - 1) / (count - 1));
    } else if (spacing == Spacing::kLeading) {
      timesteps[i] = from_last * static_cast<double>(train_steps / steps) + static_cast<double>(offset);
    } else {
      // As `numpy.arange(trained, 0, -stride)`, whose stride is the difference of its first two values: at
      // some numbers of steps values lie half-way, and the last digit decides. (At others it gives a value
      // more, of no timestep; that one is left out.)
      const double stride = trained - (trained - trained / count);
      timesteps[i] = std::nearbyint(trained - static_cast<double>(i) * stride) - 1.0;
    }
  }
  if (spacing == Spacing::kLinspace && steps > 1) timesteps.front() = trained - 1;
  return timesteps;
}

std::vector<std::int64_t> spaced_timesteps(Spacing spacing, std::size_t train_steps, std::size_t steps,
                                           std::int64_t offset) {
  std::vector<std::int64_t> timesteps;
  for (const double t : spaced_real_timesteps(spacing, train_steps, steps, offset)) {
    timesteps.push_back(static_cast<std::int64_t>(std::nearbyint(t)));
  }
  return timesteps;
}

std::vector<std::int64_t> section_timesteps(const std::string& sections, std::size_t train_steps) {
  if (sections.starts_with("ddim")) return strided(train_steps, parse_count(sections.substr(4)));
  if (sections == "fast27") {
    // The noisiest timestep is left out, which GLIDE found to reduce artefacts of DDIM.
    std::set<std::int64_t> timesteps = sectioned({10, 10, 3, 2, 2}, train_steps);
    timesteps.erase(static_cast<std::int64_t>(train_steps) - 1);
    timesteps.insert(static_cast<std::int64_t>(train_steps) - 3);
    return descending(timesteps);
  }
  return descending(sectioned(parse_counts(sections), train_steps));
}

std::vector<double> karras_sigmas(double sigma_max, double sigma_min, std::size_t steps) {
  constexpr double kRho = 7.0;
  const double first = std::pow(sigma_max, 1 / kRho), last = std::pow(sigma_min, 1 / kRho);
  std::vector<double> sigmas(steps);
  for (std::size_t i = 0; i < steps; ++i) {
    const double ramp = steps == 1 ? 0.0 : static_cast<double>(i) / static_cast<double>(steps - 1);
    sigmas[i] = std::pow(first + ramp * (last - first), kRho);
  }
  return sigmas;
}

double timestep_of_sigma(double sigma, std::span<const float> log_sigmas) {
  const double wanted = std::log(std::max(sigma, 1e-10));
  std::size_t low = 0;
  while (low + 1 < log_sigmas.size() && wanted >= static_cast<double>(log_sigmas[low + 1])) ++low;
  if (log_sigmas.size() == 1) return 0.0;
  low = std::min(low, log_sigmas.size() - 2);
  const double below = static_cast<double>(log_sigmas[low]), above = static_cast<double>(log_sigmas[low + 1]);
  const double weight = std::clamp((below - wanted) / (below - above), 0.0, 1.0);
  return (1.0 - weight) * static_cast<double>(low) + weight * static_cast<double>(low + 1);
}

double interpolate(std::span<const float> values, double position) {
  const double last = static_cast<double>(values.size() - 1);
  const double place = std::clamp(position, 0.0, last);
  const auto low = static_cast<std::size_t>(place);
  if (low + 1 >= values.size()) return static_cast<double>(values.back());
  const double below = static_cast<double>(values[low]), above = static_cast<double>(values[low + 1]);
  return below + (above - below) * (place - static_cast<double>(low));
}

}  // namespace vlrt
