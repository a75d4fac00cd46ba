// The sampling loop under the sanitizers' eyes: no step allocates, runs that throw leave it ready for the
// next, and the exact denoiser of Gaussian data leads every rule to its data. Values are compared from
// Python.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>
#include <vector>

#include "check.h"
#include "vlrt/denoise.h"

#if defined(__SANITIZE_ADDRESS__)
// Of sanitizer/allocator_interface.h, which not every compiler comes with.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, std::size_t),
                                                         void (*)(const volatile void*));
#endif

namespace {

std::atomic<std::size_t> allocations{0};

}  // namespace

#if defined(__SANITIZE_ADDRESS__)
namespace {
void count_allocation(const volatile void*, std::size_t) {
  ++allocations;
}
void ignore_release(const volatile void*) {}
const int hooked = __sanitizer_install_malloc_and_free_hooks(&count_allocation, &ignore_release);
}  // namespace
#else
void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
#endif

namespace vlrt::test {

namespace {

constexpr UpdateKind kKinds[] = {
    UpdateKind::kDdim, UpdateKind::kDdpm, UpdateKind::kPndm,           UpdateKind::kEuler,
    UpdateKind::kHeun, UpdateKind::kLcm,  UpdateKind::kEulerAncestral, UpdateKind::kDpmSolver,
};
constexpr double kMean = 0.3, kDeviation = 0.5;

NoiseSchedule schedule() {
  return NoiseSchedule({Betas::kScaledLinear, 1000, 0.00085, 0.012, {}, false});
}

UpdateOptions options_of(UpdateKind kind, std::size_t steps) {
  UpdateOptions options;
  options.kind = kind;
  options.steps = steps;
  options.spacing = Spacing::kTrailing;
  return options;
}

// The noise that Gaussian data N(kMean, kDeviation^2) has most likely been given.
void predict_exactly(Denoiser& denoiser, const UpdateRule& rule, const ModelCall& call) {
  const Evaluation& at = rule.evaluations()[call.index];
  const double signal = static_cast<double>(at.signal), noise = static_cast<double>(at.noise);
  const double spread = signal * signal * kDeviation * kDeviation + noise * noise;
  const PredictionShape& shape = denoiser.shape();
  const std::size_t size = call.rows * shape.output_size();
  float* out = denoiser.model_output();
  if (call.part == Part::kConditional) out += shape.images * shape.output_size();
  for (std::size_t i = 0; i < size; ++i) {
    const double x = static_cast<double>(denoiser.model_input()[i] * at.divisor);
    const double clean = kMean + signal * kDeviation * kDeviation / spread * (x - signal * kMean);
    out[i] = static_cast<float>((x - signal * clean) / noise);
  }
}

struct Run {
  Denoiser denoiser{{2, 3, 3, 40}};
  TorchGenerator generator{7};
  std::size_t allocated = 0;

  void operator()(UpdateRule& rule, const SamplingOptions& options, const Known& known = {}) {
    generator.randn({denoiser.sample(), 240});
    for (std::size_t i = 0; i < 240; ++i) denoiser.sample()[i] *= rule.init_noise_sigma();
    std::size_t before = 0;
    SamplingCallbacks callbacks;
    callbacks.predict = [&](const ModelCall& call) {
      predict_exactly(denoiser, rule, call);
      if (before == 0) before = allocations;
    };
    callbacks.on_step = [](std::size_t, std::size_t) {};
    callbacks.should_cancel = [] { return false; };
    if (rule.takes_gradient()) {
      callbacks.gradient = [&](std::size_t) { std::fill_n(denoiser.gradient(), 240, 0.0f); };
    }
    TorchGenerator* const generators[] = {&generator};
    const std::size_t done = denoiser.run(rule, options, generators, known, callbacks);
    allocated = allocations - before;
    CHECK(done == rule.evaluations().size() - options.start);
  }
};

}  // namespace

TEST(no_step_allocates) {
  const std::vector<float> picture(240, 0.1f), mask(240, 1.0f), noise(240, 0.2f);
  for (const UpdateKind kind : kKinds) {
    for (const bool guided : {false, true}) {
      UpdateOptions options = options_of(kind, 20);
      options.dynamic_threshold = guided;
      options.threshold_maximum = 4.0f;
      const auto rule = make_rule(schedule(), options);
      SamplingOptions sampling;
      sampling.guidance.scale = guided ? 3.0f : 1.0f;
      sampling.guidance.rescale = 0.5f;
      sampling.two_passes = guided;
      sampling.always_draws = guided;
      sampling.noise_copies = 2;
      Run run;
      run(*rule, sampling, {picture.data(), noise.data(), mask.data()});
      CHECK(run.allocated == 0);
    }
  }
}

TEST(every_rule_leads_to_the_data) {
  for (const UpdateKind kind : kKinds) {
    const auto rule = make_rule(schedule(), options_of(kind, 40));
    Run run;
    run(*rule, {});
    double sum = 0.0, squares = 0.0;
    for (std::size_t i = 0; i < 240; ++i) {
      const double value = static_cast<double>(run.denoiser.sample()[i]);
      sum += value / 240;
      squares += value * value / 240;
    }
    // 240 samples: four standard errors of the mean are 0.13, of the deviation 0.09. The one rule of many
    // clean samples in a row (LCM) has the deviation of the last one only.
    CHECK(near(sum, kMean, 0.13));
    if (kind != UpdateKind::kLcm) CHECK(near(std::sqrt(squares - sum * sum), kDeviation, 0.1));
  }
}

TEST(runs_that_throw_leave_the_loop_ready) {
  const auto rule = make_rule(schedule(), options_of(UpdateKind::kHeun, 5));
  Run run;
  SamplingCallbacks callbacks;
  callbacks.predict = [&](const ModelCall& call) {
    predict_exactly(run.denoiser, *rule, call);
    if (call.index == 3) run.denoiser.model_output()[300] = std::numeric_limits<float>::quiet_NaN();
  };
  CHECK(throws<PredictionError>([&] { run.denoiser.run(*rule, {}, {}, {}, callbacks); }));
  callbacks.predict = [](const ModelCall&) { throw std::out_of_range("the caller's own"); };
  CHECK(throws<std::out_of_range>([&] { run.denoiser.run(*rule, {}, {}, {}, callbacks); }));
  run(*rule, {});
  std::vector<float> again(run.denoiser.sample(), run.denoiser.sample() + 240);
  Run fresh;
  fresh(*rule, {});
  CHECK(std::equal(again.begin(), again.end(), fresh.denoiser.sample()));
}

TEST(what_cannot_be_is_refused) {
  const NoiseSchedule trained = schedule();
  CHECK(throws<std::invalid_argument>([&] { make_rule(trained, options_of(UpdateKind::kDdim, 0)); }));
  CHECK(throws<std::invalid_argument>([&] { make_rule(trained, options_of(UpdateKind::kDdim, 1001)); }));
  CHECK(throws<std::invalid_argument>([&] { make_rule(trained, options_of(UpdateKind::kConsistency, 3)); }));
  CHECK(throws<std::invalid_argument>([&] { make_rule(trained, options_of(UpdateKind::kUnclip, 5)); }));
  CHECK(throws<std::invalid_argument>([&] { make_rule(trained, options_of(UpdateKind::kLcm, 51)); }));
  CHECK(throws<std::invalid_argument>([] { NoiseSchedule({Betas::kExplicit, 2, 0, 0, {0.1, 1.5}, false}); }));
  CHECK(throws<std::invalid_argument>([] { NoiseSchedule({Betas::kExplicit, 0, 0, 0, {}, false}); }));
  CHECK(throws<std::invalid_argument>([] { Denoiser({1, 3, 2, 4}); }));
  for (const char* text : {"", "abc", "3,", "0", "99999999999999999999", "ddim600", "600,600"}) {
    CHECK(throws<std::invalid_argument>([&] { section_timesteps(text, 1000); }));
  }
  UpdateOptions rising = options_of(UpdateKind::kDdim, 2);
  rising.spacing = Spacing::kListed;
  rising.timesteps = {10, 20};
  CHECK(throws<std::invalid_argument>([&] { make_rule(trained, rising); }));
  rising.timesteps = {1000, 20};
  CHECK(throws<std::invalid_argument>([&] { make_rule(trained, rising); }));
}

}  // namespace vlrt::test
