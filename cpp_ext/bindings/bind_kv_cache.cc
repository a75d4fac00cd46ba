#include <pybind11/stl.h>

#include "bindings.h"
#include "vlrt/kv_cache.h"

namespace py = pybind11;

namespace vlrt::bindings {

void register_kv_cache(py::module_& m) {
  py::class_<KvCache>(m, "KvCache")
      .def(py::init([](std::size_t max_rows, std::size_t heads, std::size_t max_length, std::size_t head_dim,
                       std::size_t element_bytes) {
             return KvCache({max_rows, heads, max_length, head_dim, element_bytes});
           }),
           py::arg("max_rows"), py::arg("heads"), py::arg("max_length"), py::arg("head_dim"),
           py::arg("element_bytes") = 4)
      .def_property_readonly("bytes",
                             [](py::object self) {
                               auto& cache = self.cast<KvCache&>();
                               const KvShape& s = cache.shape();
                               const std::vector<py::ssize_t> shape{
                                   static_cast<py::ssize_t>(s.max_rows), static_cast<py::ssize_t>(s.heads),
                                   static_cast<py::ssize_t>(s.max_length),
                                   static_cast<py::ssize_t>(s.head_dim * s.element_bytes)};
                               return view(reinterpret_cast<std::uint8_t*>(cache.data()), shape, self);
                             })
      .def(
          "reorder",
          [](KvCache& self, const std::vector<std::int32_t>& parents,
             const std::vector<std::int32_t>& lengths) { self.reorder(parents, lengths); },
          py::arg("parents"), py::arg("lengths"))
      .def("broadcast", &KvCache::broadcast, py::arg("source"), py::arg("first"), py::arg("count"),
           py::arg("length"));

  m.def(
      "row_moves",
      [](const std::vector<std::int32_t>& parents, std::size_t max_rows) {
        RowMoves moves(max_rows);
        py::list planned;
        for (const RowMove& move : moves.plan(parents)) {
          planned.append(py::make_tuple(move.source, move.destination));
        }
        return planned;
      },
      py::arg("parents"), py::arg("max_rows"),
      "Planned copies (source, destination); -1 is the scratch row.");
}

}  // namespace vlrt::bindings
