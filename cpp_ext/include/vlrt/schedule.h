// The noise of the forward process, and the timesteps that sampling visits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace vlrt {

enum class Betas { kLinear, kScaledLinear, kSquaredCosine, kExplicit };
enum class Spacing { kLeading, kTrailing, kLinspace, kListed };

struct ScheduleOptions {
  Betas betas = Betas::kLinear;
  std::size_t train_steps = 1000;
  double beta_start = 1e-4;
  double beta_end = 0.02;
  std::vector<double> values;  // of kExplicit
  bool zero_terminal_snr = false;
};

// Cumulative signal power per training timestep, rounded to single precision where diffusers 0.39 rounds:
// differences like 1 - alpha_t / alpha_{t-1} cancel, so these roundings show in the pictures.
class NoiseSchedule {
 public:
  // Throws std::invalid_argument where a variance lies outside (0, 1].
  explicit NoiseSchedule(const ScheduleOptions& options);

  std::size_t train_steps() const { return betas_.size(); }
  std::span<const float> betas() const { return betas_; }
  std::span<const float> alphas_cumprod() const { return alphas_cumprod_; }
  bool squared_cosine() const { return squared_cosine_; }

  // sqrt((1 - alpha_bar) / alpha_bar) per timestep; with zero terminal signal the last one is finite all the
  // same, as in diffusers.
  std::vector<float> sigmas() const;

 private:
  bool zero_terminal_snr_;
  bool squared_cosine_;
  std::vector<float> betas_;
  std::vector<float> alphas_cumprod_;
};

// `steps` integer timesteps, the largest first (Lin et al. 2023, table 2).
std::vector<std::int64_t> spaced_timesteps(Spacing spacing, std::size_t train_steps, std::size_t steps,
                                           std::int64_t offset);

// The same, unrounded where the spacing does not divide (the rules that interpolate noise levels).
std::vector<double> spaced_real_timesteps(Spacing spacing, std::size_t train_steps, std::size_t steps,
                                          std::int64_t offset);

// Timesteps of equal sections of the training, the largest first: "10,10,5" counts per section, "ddimN" an
// integer stride with N timesteps, "fast27" GLIDE's own choice (glide-text2im, `space_timesteps`). Throws
// std::invalid_argument where a section has fewer timesteps than asked for, or the text is none of these.
std::vector<std::int64_t> section_timesteps(const std::string& sections, std::size_t train_steps);

// Noise levels [steps] with rho = 7 (Karras et al. 2022, equation 5).
std::vector<double> karras_sigmas(double sigma_max, double sigma_min, std::size_t steps);

// The timestep of a noise level, linear in log sigma between neighbours (k-diffusion).
double timestep_of_sigma(double sigma, std::span<const float> log_sigmas);

// Values between training timesteps, linear; held beyond both ends.
double interpolate(std::span<const float> values, double position);

}  // namespace vlrt
