#include "vlrt/guidance.h"

#include <algorithm>

#include "vlrt/elementwise.h"

namespace vlrt {

namespace {

void rescale(std::span<float> guided, std::span<const float> conditional, float share) {
  const double wanted = standard_deviation(conditional), got = standard_deviation(guided);
  if (got == 0.0) return;
  const auto factor = static_cast<float>(wanted / got);
  for (float& value : guided) value = share * (value * factor) + (1.0f - share) * value;
}

}  // namespace

bool GuidanceOptions::active(std::size_t evaluation, std::size_t evaluations) const {
  const auto count = static_cast<double>(evaluations);
  const auto first = static_cast<std::size_t>(start * count), end = static_cast<std::size_t>(stop * count);
  return scale > 1.0f && evaluation >= first && evaluation < end;
}

void guide(float* prediction, const float* unconditional, const float* conditional,
           const PredictionShape& shape, const GuidanceOptions& options) {
  const std::size_t channels =
      options.channels == 0 ? shape.channels : std::min(options.channels, shape.channels);
  const std::size_t guided = channels * shape.pixels, size = shape.sample_size();
  for (std::size_t image = 0; image < shape.images; ++image) {
    const float* u = unconditional + image * shape.output_size();
    const float* c = conditional + image * shape.output_size();
    float* out = prediction + image * size;
    for (std::size_t i = 0; i < guided; ++i) out[i] = u[i] + options.scale * (c[i] - u[i]);
    std::copy(c + guided, c + size, out + guided);
    if (options.rescale > 0.0f && guided > 1) rescale({out, guided}, {c, guided}, options.rescale);
  }
}

void take_channels(float* out, const float* output, const PredictionShape& shape, std::size_t first) {
  for (std::size_t image = 0; image < shape.images; ++image) {
    std::copy_n(output + image * shape.output_size() + first * shape.pixels, shape.sample_size(),
                out + image * shape.sample_size());
  }
}

}  // namespace vlrt
