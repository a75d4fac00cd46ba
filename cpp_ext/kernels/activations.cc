#include "activations.h"

#include <cmath>
#include <numbers>

namespace vlrt::kernels {
namespace {

double times_sigmoid(double x, double of) {
  return x / (1.0 + std::exp(-of));
}

double in_double(Activation activation, double x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x < 0.0 ? 0.0 : x;
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x / std::numbers::sqrt2);
    case Activation::gelu_tanh:
      // 0.5 (1 + tanh(z)) = sigmoid(2 z)
      return times_sigmoid(x, 2.0 * std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x));
    case Activation::quick_gelu:
      return times_sigmoid(x, 1.702 * x);
    case Activation::silu:
      return times_sigmoid(x, x);
  }
  return x;
}

}  // namespace

float activate(Activation activation, float x) {
  return static_cast<float>(in_double(activation, x));
}

}  // namespace vlrt::kernels
