#include <span>

#include "bindings.h"
#include "vlrt/noise.h"
#include "vlrt/sampler.h"

namespace py = pybind11;

namespace vlrt::bindings {

namespace {

template <typename T>
std::span<T> elements(py::array_t<T>& array) {
  return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

std::int32_t draw(const py::array_t<float, py::array::c_style>& probabilities, TorchGenerator& generator) {
  return multinomial({probabilities.data(), static_cast<std::size_t>(probabilities.size())}, generator);
}

}  // namespace

void register_noise(py::module_& m) {
  py::class_<TorchGenerator>(m, "TorchGenerator")
      .def(py::init<std::uint64_t>(), py::arg("seed") = 0)
      .def("seed", &TorchGenerator::seed, py::arg("seed"))
      .def("random", &TorchGenerator::random)
      .def("rand",
           [](TorchGenerator& self, py::ssize_t count) {
             py::array_t<float> out(count);
             self.rand(elements(out));
             return out;
           })
      .def("rand_double",
           [](TorchGenerator& self, py::ssize_t count) {
             py::array_t<double> out(count);
             self.rand(elements(out));
             return out;
           })
      .def("randn",
           [](TorchGenerator& self, py::ssize_t count) {
             py::array_t<float> out(count);
             self.randn(elements(out));
             return out;
           })
      .def("randn_double",
           [](TorchGenerator& self, py::ssize_t count) {
             py::array_t<double> out(count);
             self.randn(elements(out));
             return out;
           })
      .def("randint",
           [](TorchGenerator& self, std::int64_t low, std::int64_t high, py::ssize_t count) {
             py::array_t<std::int64_t> out(count);
             self.randint(low, high, elements(out));
             return out;
           })
      .def("multinomial",
           [](TorchGenerator& self, const py::array_t<float, py::array::c_style>& probabilities) {
             return draw(probabilities, self);
           });
}

}  // namespace vlrt::bindings
