#include "bindings.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Decoding loops in C++; they call back for every forward pass and know no inference engine.";
  vlrt::bindings::register_noise(m);
  vlrt::bindings::register_logits(m);
  vlrt::bindings::register_kv_cache(m);
  vlrt::bindings::register_decode(m);
  vlrt::bindings::register_diffusion(m);
}
