#include <pybind11/stl.h>

#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "vlrt/decode.h"

namespace py = pybind11;

namespace vlrt::bindings {

namespace {

using Rows = std::vector<std::pair<std::string, std::size_t>>;
using Caches = std::vector<
    std::tuple<std::string, std::size_t, std::size_t, std::size_t, std::size_t, std::optional<std::size_t>>>;
using Shifts = std::vector<std::tuple<std::string, std::size_t, std::size_t, std::size_t>>;
using Patterns = std::vector<std::tuple<std::string, std::size_t, std::vector<Ids>>>;

py::ssize_t size(std::size_t value) {
  return static_cast<py::ssize_t>(value);
}

std::vector<NamedRow> named(const Rows& rows) {
  std::vector<NamedRow> specs;
  for (const auto& [name, row_bytes] : rows) specs.push_back({name, row_bytes});
  return specs;
}

std::vector<NamedCache> named(const Caches& caches) {
  std::vector<NamedCache> specs;
  for (const auto& [name, heads, length, dim, bytes, pattern] : caches)
    specs.push_back({name, heads, length, dim, bytes, pattern});
  return specs;
}

std::vector<NamedShift> named(const Shifts& shifts) {
  std::vector<NamedShift> specs;
  for (const auto& [name, row_bytes, origin, columns] : shifts)
    specs.push_back({name, row_bytes, origin, columns});
  return specs;
}

std::vector<WindowPattern> named(const Patterns& patterns) {
  std::vector<WindowPattern> specs;
  for (const auto& [name, origin, visible] : patterns) specs.push_back({name, origin, visible});
  return specs;
}

template <typename Named>
std::size_t index_of(const std::vector<Named>& specs, const std::string& name) {
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].name == name) return i;
  }
  throw py::key_error(name);
}

py::array bytes_view(std::byte* data, std::size_t rows, std::size_t row_bytes, const py::object& owner) {
  return view(reinterpret_cast<std::uint8_t*>(data), {size(rows), size(row_bytes)}, owner);
}

std::vector<std::span<const std::byte>> spans(const std::vector<py::array>& arrays) {
  std::vector<std::span<const std::byte>> result;
  for (const py::array& array : arrays) {
    if ((array.flags() & py::array::c_style) == 0)
      throw std::invalid_argument("an initial value is not contiguous");
    result.emplace_back(static_cast<const std::byte*>(array.data()),
                        static_cast<std::size_t>(array.nbytes()));
  }
  return result;
}

// Python is entered for the callbacks only; an exception there unwinds the loop and surfaces unchanged.
Callbacks callbacks_of(const py::function& step, const py::object& on_token,
                       const py::object& should_cancel) {
  Callbacks callbacks;
  callbacks.step = [&step](const StepSize& at) {
    const py::gil_scoped_acquire locked;
    step(at.rows, at.width, at.images);
  };
  if (!on_token.is_none()) {
    callbacks.on_token = [&on_token](std::size_t image, std::int32_t token) {
      const py::gil_scoped_acquire locked;
      on_token(image, token);
    };
  }
  if (!should_cancel.is_none()) {
    callbacks.should_cancel = [&should_cancel] {
      const py::gil_scoped_acquire locked;
      return should_cancel().cast<bool>();
    };
  }
  return callbacks;
}

std::vector<std::vector<Hypothesis>> run(Decoder& self, const SearchOptions& search,
                                         const LogitsOptions& logits, std::uint64_t seed,
                                         std::vector<Ids> prompts, const std::vector<py::array>& recurrent,
                                         const std::vector<py::array>& memory, const py::function& step,
                                         const py::object& on_token, const py::object& should_cancel,
                                         std::size_t prefix_length, bool keep_records, float guidance_scale) {
  Request request;
  request.search = search;
  request.logits = logits;
  request.seed = seed;
  request.prompts = std::move(prompts);
  request.recurrent = spans(recurrent);
  request.memory = spans(memory);
  request.prefix_length = prefix_length;
  request.keep_records = keep_records;
  request.guidance_scale = guidance_scale;
  const Callbacks callbacks = callbacks_of(step, on_token, should_cancel);
  const py::gil_scoped_release unlocked;
  return self.run(request, callbacks);
}

py::list record_arrays(const Hypothesis& hypothesis) {
  py::list arrays;
  for (const auto& record : hypothesis.records) {
    const std::size_t length = hypothesis.tokens.size();
    py::array_t<std::uint8_t> array({size(length), size(length == 0 ? 0 : record.size() / length)});
    std::copy_n(reinterpret_cast<const std::uint8_t*>(record.data()), record.size(), array.mutable_data());
    arrays.append(std::move(array));
  }
  return arrays;
}

void register_options(py::module_& m) {
  py::enum_<Rule>(m, "Rule").value("hf", Rule::kHf).value("classic", Rule::kClassic);
  py::enum_<EarlyStopping>(m, "EarlyStopping")
      .value("off", EarlyStopping::kOff)
      .value("on", EarlyStopping::kOn)
      .value("never", EarlyStopping::kNever);
  py::class_<SearchOptions>(m, "SearchOptions")
      .def(py::init<>())
      .def_readwrite("rule", &SearchOptions::rule)
      .def_readwrite("num_beams", &SearchOptions::num_beams)
      .def_readwrite("num_return_sequences", &SearchOptions::num_return_sequences)
      .def_readwrite("max_new_tokens", &SearchOptions::max_new_tokens)
      .def_readwrite("length_penalty", &SearchOptions::length_penalty)
      .def_readwrite("early_stopping", &SearchOptions::early_stopping)
      .def_readwrite("do_sample", &SearchOptions::do_sample)
      .def_readwrite("end_ids", &SearchOptions::end_ids);
  py::class_<Hypothesis>(m, "Hypothesis")
      .def_readonly("tokens", &Hypothesis::tokens)
      .def_readonly("score", &Hypothesis::score)
      .def_readonly("log_probability", &Hypothesis::log_probability)
      .def_readonly("finished", &Hypothesis::finished)
      .def_property_readonly("records", &record_arrays);
}

template <typename T>
auto flat(T* (Decoder::*buffer)(), bool wide) {
  return [buffer, wide](const py::object& self) {
    auto& decoder = self.cast<Decoder&>();
    const std::size_t width = wide ? decoder.shape().max_width : 1;
    return view((decoder.*buffer)(), {size(decoder.shape().max_rows * width)}, self);
  };
}

void register_buffers(py::class_<Decoder>& decoder) {
  decoder.def_property_readonly("tokens", flat(&Decoder::tokens, true))
      .def_property_readonly("positions", flat(&Decoder::positions, true))
      .def_property_readonly("past_lengths", flat(&Decoder::past_lengths, false))
      .def_property_readonly("new_lengths", flat(&Decoder::new_lengths, false))
      .def_property_readonly("last_positions", flat(&Decoder::last_positions, false))
      .def_property_readonly("sources", flat(&Decoder::sources, false))
      .def_property_readonly(
          "total_length",
          [](const py::object& self) { return view(self.cast<Decoder&>().total_length(), {1}, self); })
      .def_property_readonly("logits", [](const py::object& self) {
        auto& d = self.cast<Decoder&>();
        return view(d.logits(), {size(d.shape().max_rows), size(d.shape().vocabulary)}, self);
      });
  const auto pattern = [](auto buffer, bool per_row) {
    return [buffer, per_row](const py::object& self, const std::string& name) {
      auto& d = self.cast<Decoder&>();
      const std::size_t i = index_of(d.shape().patterns, name);
      return view((d.*buffer)(i), {per_row ? size(d.shape().max_rows) : 1}, self);
    };
  };
  decoder.def("pattern_last", pattern(&Decoder::pattern_last, true));
  decoder.def("pattern_total", pattern(&Decoder::pattern_total, false));
  decoder.def("cache", [](const py::object& self, const std::string& name) {
    auto& d = self.cast<Decoder&>();
    KvCache& found = d.cache(index_of(d.shape().caches, name));
    return bytes_view(found.data(), d.shape().max_rows, found.row_bytes(), self);
  });
  const auto state = [](auto side) {
    return [side](const py::object& self, const std::string& name) {
      auto& d = self.cast<Decoder&>();
      RecurrentState& found = d.recurrent(index_of(d.shape().recurrent, name));
      return bytes_view((found.*side)(), d.shape().max_rows, found.row_bytes(), self);
    };
  };
  decoder.def("state_input", state(&RecurrentState::input));
  decoder.def("state_output", state(&RecurrentState::output));
  const auto shift = [](auto side) {
    return [side](const py::object& self, const std::string& name) {
      auto& d = self.cast<Decoder&>();
      ShiftedState& found = d.shifted(index_of(d.shape().shifts, name));
      return bytes_view((found.*side)(), d.shape().max_rows, found.row_bytes(), self);
    };
  };
  decoder.def("shift_input", shift(&ShiftedState::input));
  decoder.def("shift_output", shift(&ShiftedState::output));
  decoder.def("memory", [](const py::object& self, const std::string& name) {
    auto& d = self.cast<Decoder&>();
    ImageMemory& found = d.memory(index_of(d.shape().memory, name));
    return bytes_view(found.data(), d.shape().max_images, found.row_bytes(), self);
  });
  decoder.def("noise", [](const py::object& self, const std::string& name) {
    auto& d = self.cast<Decoder&>();
    const std::size_t i = index_of(d.shape().noise, name);
    return bytes_view(d.noise(i), d.shape().max_rows, d.shape().noise[i].row_bytes, self);
  });
  decoder.def("record", [](const py::object& self, const std::string& name) {
    auto& d = self.cast<Decoder&>();
    const std::size_t i = index_of(d.shape().records, name);
    return bytes_view(d.record(i), d.shape().max_rows, d.shape().records[i].row_bytes, self);
  });
}

}  // namespace

void register_decode(py::module_& m) {
  py::register_exception<ScoreError>(m, "ScoreError");
  register_options(m);
  py::class_<Decoder> decoder(m, "Decoder");
  decoder.def(py::init([](std::size_t vocabulary, std::size_t max_images, std::size_t max_rows,
                          std::size_t max_steps, std::size_t max_width, const Patterns& patterns,
                          const Caches& caches, const Rows& recurrent, const Shifts& shifts,
                          const Rows& memory, const Rows& noise, const Rows& records) {
                return std::make_unique<Decoder>(LoopShape{
                    vocabulary, max_images, max_rows, max_steps, max_width, named(patterns), named(caches),
                    named(recurrent), named(shifts), named(memory), named(noise), named(records)});
              }),
              py::kw_only(), py::arg("vocabulary"), py::arg("max_images"), py::arg("max_rows"),
              py::arg("max_steps"), py::arg("max_width") = 1, py::arg("patterns") = Patterns{},
              py::arg("caches") = Caches{}, py::arg("recurrent") = Rows{}, py::arg("shifts") = Shifts{},
              py::arg("memory") = Rows{}, py::arg("noise") = Rows{}, py::arg("records") = Rows{});
  decoder.def("run", &run, py::kw_only(), py::arg("search"), py::arg("logits"), py::arg("seed"),
              py::arg("prompts"), py::arg("recurrent"), py::arg("memory"), py::arg("step"),
              py::arg("on_token") = py::none(), py::arg("should_cancel") = py::none(),
              py::arg("prefix_length") = 0, py::arg("keep_records") = true, py::arg("guidance_scale") = 1.0f);
  register_buffers(decoder);
}

}  // namespace vlrt::bindings
