#include <pybind11/stl.h>

#include <span>
#include <stdexcept>

#include "bindings.h"
#include "vlrt/log_softmax.h"
#include "vlrt/logits.h"

namespace py = pybind11;

namespace vlrt::bindings {

namespace {

std::span<float> row(py::array_t<float, py::array::c_style>& scores, std::size_t expected) {
  const auto size = static_cast<std::size_t>(scores.size());
  if (scores.ndim() != 1 || size == 0 || (expected != 0 && size != expected)) {
    throw std::invalid_argument("scores must be one row over the vocabulary");
  }
  return {scores.mutable_data(), size};
}

void apply(LogitsProcessors& self, std::size_t vocabulary, py::array_t<float, py::array::c_style>& scores,
           const Ids& tokens, std::size_t prompt_length) {
  for (const std::int32_t id : tokens) {
    if (id < 0 || static_cast<std::size_t>(id) >= vocabulary) {
      throw std::invalid_argument("token id outside the vocabulary");
    }
  }
  if (prompt_length > tokens.size()) throw std::invalid_argument("the prompt is longer than the tokens");
  self.apply(row(scores, vocabulary), {tokens, prompt_length});
}

// The processors with the vocabulary they were made for.
struct BoundProcessors {
  LogitsProcessors processors;
  std::size_t vocabulary;
};

}  // namespace

void register_logits(py::module_& m) {
  py::class_<LogitsOptions>(m, "LogitsOptions")
      .def(py::init<>())
      .def_readwrite("repetition_penalty", &LogitsOptions::repetition_penalty)
      .def_readwrite("no_repeat_ngram_size", &LogitsOptions::no_repeat_ngram_size)
      .def_readwrite("bad_words_ids", &LogitsOptions::bad_words_ids)
      .def_readwrite("min_length", &LogitsOptions::min_length)
      .def_readwrite("min_new_tokens", &LogitsOptions::min_new_tokens)
      .def_readwrite("max_new_tokens", &LogitsOptions::max_new_tokens)
      .def_readwrite("end_ids", &LogitsOptions::end_ids)
      .def_readwrite("forced_bos_id", &LogitsOptions::forced_bos_id)
      .def_readwrite("forced_eos_ids", &LogitsOptions::forced_eos_ids)
      .def_readwrite("suppress_tokens", &LogitsOptions::suppress_tokens)
      .def_readwrite("begin_suppress_tokens", &LogitsOptions::begin_suppress_tokens)
      .def_readwrite("warp", &LogitsOptions::warp)
      .def_readwrite("temperature", &LogitsOptions::temperature)
      .def_readwrite("top_k", &LogitsOptions::top_k)
      .def_readwrite("top_p", &LogitsOptions::top_p)
      .def_readwrite("min_p", &LogitsOptions::min_p)
      .def_readwrite("typical_p", &LogitsOptions::typical_p)
      .def_readwrite("min_tokens_to_keep", &LogitsOptions::min_tokens_to_keep)
      .def_readwrite("renormalize", &LogitsOptions::renormalize);

  py::class_<BoundProcessors>(m, "LogitsProcessors")
      .def(py::init([](const LogitsOptions& options, std::size_t vocabulary) {
             return BoundProcessors{LogitsProcessors(options, vocabulary), vocabulary};
           }),
           py::arg("options"), py::arg("vocabulary"))
      .def(
          "apply",
          [](BoundProcessors& self, py::array_t<float, py::array::c_style>& scores, const Ids& tokens,
             std::size_t prompt_length) {
            apply(self.processors, self.vocabulary, scores, tokens, prompt_length);
          },
          py::arg("scores").noconvert(), py::arg("tokens"), py::arg("prompt_length"));

  m.def(
      "log_softmax",
      [](py::array_t<float, py::array::c_style>& scores) {
        const std::span<float> values = row(scores, 0);
        subtract(values, normalize(values, {}));
      },
      py::arg("scores").noconvert(), "Turns one row of logits into log-probabilities, in place.");
}

}  // namespace vlrt::bindings
