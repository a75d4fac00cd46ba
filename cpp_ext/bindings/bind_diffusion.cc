#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bindings.h"
#include "vlrt/denoise.h"
#include "vlrt/schedule.h"
#include "vlrt/update_rule.h"

namespace py = pybind11;

namespace vlrt::bindings {

namespace {

using Array = py::array_t<float, py::array::c_style>;

py::ssize_t size(std::size_t value) {
  return static_cast<py::ssize_t>(value);
}

template <typename T>
py::array_t<T> copied(std::span<const T> values) {
  return py::array_t<T>(size(values.size()), values.data());
}

const float* data_of(const std::optional<Array>& array, const PredictionShape& shape, const char* name) {
  if (!array) return nullptr;
  if (static_cast<std::size_t>(array->size()) != shape.images * shape.sample_size()) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(array->size()) +
                                " elements, expected " + std::to_string(shape.images * shape.sample_size()));
  }
  return array->data();
}

// Python is entered for the callbacks only; an exception there unwinds the loop and surfaces unchanged.
SamplingCallbacks callbacks_of(const py::function& predict, const py::object& gradient,
                               const py::object& on_step, const py::object& should_cancel) {
  SamplingCallbacks callbacks;
  callbacks.predict = [&predict](const ModelCall& call) {
    const py::gil_scoped_acquire locked;
    predict(call.part, call.rows, call.index);
  };
  if (!gradient.is_none()) {
    callbacks.gradient = [&gradient](std::size_t index) {
      const py::gil_scoped_acquire locked;
      gradient(index);
    };
  }
  if (!on_step.is_none()) {
    callbacks.on_step = [&on_step](std::size_t done, std::size_t all) {
      const py::gil_scoped_acquire locked;
      on_step(done, all);
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

std::size_t run(Denoiser& self, UpdateRule& rule, const SamplingOptions& options,
                const std::vector<TorchGenerator*>& generators, const py::function& predict,
                const std::optional<Array>& known_sample, const std::optional<Array>& known_noise,
                const std::optional<Array>& known_mask, const py::object& gradient, const py::object& on_step,
                const py::object& should_cancel) {
  const Known known{data_of(known_sample, self.shape(), "the known picture"),
                    data_of(known_noise, self.shape(), "the known picture's noise"),
                    data_of(known_mask, self.shape(), "the mask")};
  const SamplingCallbacks callbacks = callbacks_of(predict, gradient, on_step, should_cancel);
  const py::gil_scoped_release unlocked;
  return self.run(rule, options, generators, known, callbacks);
}

void register_schedule(py::module_& m) {
  py::enum_<Betas>(m, "Betas")
      .value("linear", Betas::kLinear)
      .value("scaled_linear", Betas::kScaledLinear)
      .value("squared_cosine", Betas::kSquaredCosine)
      .value("explicit", Betas::kExplicit);
  py::enum_<Spacing>(m, "Spacing")
      .value("leading", Spacing::kLeading)
      .value("trailing", Spacing::kTrailing)
      .value("linspace", Spacing::kLinspace)
      .value("listed", Spacing::kListed);
  py::class_<NoiseSchedule>(m, "NoiseSchedule")
      .def(py::init([](Betas betas, std::size_t train_steps, double beta_start, double beta_end,
                       const std::vector<double>& values, bool zero_terminal_snr) {
             return NoiseSchedule({betas, train_steps, beta_start, beta_end, values, zero_terminal_snr});
           }),
           py::kw_only(), py::arg("betas"), py::arg("train_steps"), py::arg("beta_start") = 1e-4,
           py::arg("beta_end") = 0.02, py::arg("values") = std::vector<double>{},
           py::arg("zero_terminal_snr") = false)
      .def_property_readonly("betas", [](const NoiseSchedule& self) { return copied(self.betas()); })
      .def_property_readonly("alphas_cumprod",
                             [](const NoiseSchedule& self) { return copied(self.alphas_cumprod()); });
  m.def("section_timesteps", &section_timesteps, py::arg("sections"), py::arg("train_steps"));
}

void register_rules(py::module_& m) {
  py::enum_<UpdateKind>(m, "UpdateKind")
      .value("ddim", UpdateKind::kDdim)
      .value("ddpm", UpdateKind::kDdpm)
      .value("pndm", UpdateKind::kPndm)
      .value("euler", UpdateKind::kEuler)
      .value("euler_ancestral", UpdateKind::kEulerAncestral)
      .value("heun", UpdateKind::kHeun)
      .value("dpm_solver", UpdateKind::kDpmSolver)
      .value("lcm", UpdateKind::kLcm)
      .value("unclip", UpdateKind::kUnclip)
      .value("consistency", UpdateKind::kConsistency);
  py::enum_<Prediction>(m, "Prediction")
      .value("epsilon", Prediction::kEpsilon)
      .value("v", Prediction::kVelocity)
      .value("sample", Prediction::kSample);
  py::enum_<Variance>(m, "Variance")
      .value("fixed_small", Variance::kFixedSmall)
      .value("fixed_small_log", Variance::kFixedSmallLog)
      .value("fixed_large", Variance::kFixedLarge)
      .value("learned", Variance::kLearned)
      .value("learned_range", Variance::kLearnedRange);
  py::enum_<FinalSigma>(m, "FinalSigma")
      .value("zero", FinalSigma::kZero)
      .value("sigma_min", FinalSigma::kSigmaMin);
  py::class_<UpdateOptions>(m, "UpdateOptions")
      .def(py::init<>())
      .def_readwrite("kind", &UpdateOptions::kind)
      .def_readwrite("steps", &UpdateOptions::steps)
      .def_readwrite("prediction", &UpdateOptions::prediction)
      .def_readwrite("variance", &UpdateOptions::variance)
      .def_readwrite("spacing", &UpdateOptions::spacing)
      .def_readwrite("timesteps", &UpdateOptions::timesteps)
      .def_readwrite("steps_offset", &UpdateOptions::steps_offset)
      .def_readwrite("set_alpha_to_one", &UpdateOptions::set_alpha_to_one)
      .def_readwrite("clip_range", &UpdateOptions::clip_range)
      .def_readwrite("dynamic_threshold", &UpdateOptions::dynamic_threshold)
      .def_readwrite("threshold_ratio", &UpdateOptions::threshold_ratio)
      .def_readwrite("threshold_maximum", &UpdateOptions::threshold_maximum)
      .def_readwrite("eta", &UpdateOptions::eta)
      .def_readwrite("rederive_epsilon", &UpdateOptions::rederive_epsilon)
      .def_readwrite("skip_prk_steps", &UpdateOptions::skip_prk_steps)
      .def_readwrite("karras_sigmas", &UpdateOptions::karras_sigmas)
      .def_readwrite("final_sigma", &UpdateOptions::final_sigma)
      .def_readwrite("solver_order", &UpdateOptions::solver_order)
      .def_readwrite("lower_order_final", &UpdateOptions::lower_order_final)
      .def_readwrite("original_steps", &UpdateOptions::original_steps)
      .def_readwrite("timestep_scaling", &UpdateOptions::timestep_scaling);
  py::class_<UpdateRule>(m, "UpdateRule")
      .def(py::init(&make_rule), py::arg("schedule"), py::arg("options"))
      .def_property_readonly("init_noise_sigma", &UpdateRule::init_noise_sigma)
      .def_property_readonly("order", &UpdateRule::order)
      .def_property_readonly("evaluations", [](const UpdateRule& self) {
        py::list evaluations;
        for (const Evaluation& e : self.evaluations()) {
          evaluations.append(py::make_tuple(e.timestep, e.divisor, e.signal, e.noise, e.draws));
        }
        return evaluations;
      });
}

// A flat view of a buffer; Python gives it the shape.
template <typename T>
auto flat(T* (Denoiser::*buffer)(), std::size_t (*count)(const PredictionShape&)) {
  return [buffer, count](const py::object& self) {
    auto& denoiser = self.cast<Denoiser&>();
    return view((denoiser.*buffer)(), {size(count(denoiser.shape()))}, self);
  };
}

void register_denoiser(py::module_& m) {
  py::register_exception<PredictionError>(m, "PredictionError");
  py::enum_<Part>(m, "Part")
      .value("both", Part::kBoth)
      .value("unconditional", Part::kUnconditional)
      .value("conditional", Part::kConditional);
  py::class_<GuidanceOptions>(m, "GuidanceOptions")
      .def(py::init<>())
      .def_readwrite("scale", &GuidanceOptions::scale)
      .def_readwrite("rescale", &GuidanceOptions::rescale)
      .def_readwrite("start", &GuidanceOptions::start)
      .def_readwrite("stop", &GuidanceOptions::stop)
      .def_readwrite("channels", &GuidanceOptions::channels);
  py::class_<SamplingOptions>(m, "SamplingOptions")
      .def(py::init<>())
      .def_readwrite("guidance", &SamplingOptions::guidance)
      .def_readwrite("two_passes", &SamplingOptions::two_passes)
      .def_readwrite("start", &SamplingOptions::start)
      .def_readwrite("noise_copies", &SamplingOptions::noise_copies)
      .def_readwrite("always_draws", &SamplingOptions::always_draws)
      .def_readwrite("replaces", &SamplingOptions::replaces);
  const auto samples = [](const PredictionShape& s) { return s.images * s.sample_size(); };
  const auto inputs = [](const PredictionShape& s) { return 2 * s.images * s.sample_size(); };
  const auto outputs = [](const PredictionShape& s) { return 2 * s.images * s.output_size(); };
  const auto rows = [](const PredictionShape& s) { return 2 * s.images; };
  py::class_<Denoiser>(m, "Denoiser")
      .def(py::init([](std::size_t images, std::size_t channels, std::size_t output_channels,
                       std::size_t pixels) {
             return std::make_unique<Denoiser>(PredictionShape{images, channels, output_channels, pixels});
           }),
           py::kw_only(), py::arg("images"), py::arg("channels"), py::arg("output_channels"),
           py::arg("pixels"))
      .def_property_readonly("sample", flat(&Denoiser::sample, samples))
      .def_property_readonly("denoised", flat(&Denoiser::denoised, samples))
      .def_property_readonly("gradient", flat(&Denoiser::gradient, samples))
      .def_property_readonly("model_input", flat(&Denoiser::model_input, inputs))
      .def_property_readonly("timesteps", flat(&Denoiser::timesteps, rows))
      .def_property_readonly("real_timesteps", flat(&Denoiser::real_timesteps, rows))
      .def_property_readonly("model_output", flat(&Denoiser::model_output, outputs))
      .def("run", &run, py::kw_only(), py::arg("rule"), py::arg("options"), py::arg("generators"),
           py::arg("predict"), py::arg("known_sample") = py::none(), py::arg("known_noise") = py::none(),
           py::arg("known_mask") = py::none(), py::arg("gradient") = py::none(),
           py::arg("on_step") = py::none(), py::arg("should_cancel") = py::none());
}

}  // namespace

void register_diffusion(py::module_& m) {
  register_schedule(m);
  register_rules(m);
  register_denoiser(m);
}

}  // namespace vlrt::bindings
