// One `register_…` per file of this folder.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace vlrt::bindings {

void register_decode(pybind11::module_& m);
void register_diffusion(pybind11::module_& m);
void register_kv_cache(pybind11::module_& m);
void register_logits(pybind11::module_& m);
void register_noise(pybind11::module_& m);

// A view without a copy; `owner` lives at least as long as the view.
template <typename T>
pybind11::array view(T* data, std::vector<pybind11::ssize_t> shape, pybind11::handle owner) {
  return pybind11::array_t<T>(std::move(shape), data, owner);
}

}  // namespace vlrt::bindings
