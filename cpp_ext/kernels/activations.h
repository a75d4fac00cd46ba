// What may follow a product, element by element.
#pragma once

namespace vlrt::kernels {

enum class Activation {
  none,
  relu,
  gelu,        // x Phi(x), by the error function
  gelu_tanh,   // 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
  quick_gelu,  // x sigmoid(1.702 x)
  silu,        // x sigmoid(x)
};

// One value, by the standard library: what the vectors of `activations_avx512.h` are held against.
// GELU and both its approximations: Hendrycks and Gimpel 2016, section 2; SiLU: Elfwing et al. 2017,
// equation 8.
float activate(Activation activation, float x);

}  // namespace vlrt::kernels
