// Convolutions by minimal filtering against plain sums in double: sizes that meet every border, and bit for
// bit against themselves on other threads.
#if defined(VLRT_HAS_KERNELS)

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "check.h"
#include "conv3x3.h"
#include "cpu.h"
#include "vlrt/aligned.h"
#include "vlrt/noise.h"

namespace vlrt::test {

namespace {

using kernels::ConvShape;
using kernels::Parallel;

std::vector<float> random_floats(TorchGenerator& generator, std::size_t count) {
  std::vector<float> made(count);
  generator.randn(made);
  return made;
}

struct Case {
  ConvShape shape;
  std::vector<float> x, weights, bias, shift, residual;
  AlignedBuffer packed;

  std::size_t plane() const { return shape.height * shape.width; }
  std::size_t count() const { return shape.batch * shape.outputs * plane(); }
};

Case random_case(const ConvShape& shape) {
  TorchGenerator generator(7);
  Case made{shape, {}, {}, {}, {}, {}, {}};
  made.x = random_floats(generator, shape.batch * shape.inputs * made.plane());
  made.weights = random_floats(generator, shape.outputs * shape.inputs * 9);
  made.bias = random_floats(generator, shape.outputs);
  made.shift = random_floats(generator, shape.batch * shape.outputs);
  made.residual = random_floats(generator, made.count());
  const std::size_t groups = (shape.outputs + 15) / 16;
  made.packed = AlignedBuffer(groups * 16 * shape.inputs * 9 * sizeof(float));
  for (std::size_t output = 0; output < shape.outputs; ++output) {
    for (std::size_t rest = 0; rest < shape.inputs * 9; ++rest) {
      made.packed.as<float>()[(output / 16 * shape.inputs * 9 + rest) * 16 + output % 16] =
          made.weights[output * shape.inputs * 9 + rest];
    }
  }
  return made;
}

std::vector<float> convolved(Case& made, const Parallel& parallel,
                             kernels::Activation activation = kernels::Activation::none) {
  std::vector<float> y(made.count());
  const kernels::ConvEpilogue epilogue{made.bias.data(), made.shift.data(), made.residual.data(), activation};
  kernels::conv3x3_f32(made.shape, made.x.data(), made.packed.as<float>(), epilogue, y.data(), parallel);
  return y;
}

// The sum at one place of one output, without what is added to it.
double direct(const Case& made, std::size_t picture, std::size_t output, std::size_t row,
              std::size_t column) {
  double sum = 0;
  for (std::size_t tap = 0; tap < 9; ++tap) {
    const std::size_t y = row + tap / 3, x = column + tap % 3;  // one too many: padding
    if (y == 0 || x == 0 || y > made.shape.height || x > made.shape.width) continue;
    for (std::size_t input = 0; input < made.shape.inputs; ++input) {
      const std::size_t plane = picture * made.shape.inputs + input;
      sum += double{made.x[plane * made.plane() + (y - 1) * made.shape.width + x - 1]} *
             double{made.weights[(output * made.shape.inputs + input) * 9 + tap]};
    }
  }
  return sum;
}

void check_case(const ConvShape& shape) {
  Case made = random_case(shape);
  const std::vector<float> y = convolved(made, kernels::serial());
  double largest = 0, error = 0;
  for (std::size_t at = 0; at < made.count(); ++at) {
    const std::size_t plane = at / made.plane(), output = plane % shape.outputs, place = at % made.plane();
    const double sum = direct(made, plane / shape.outputs, output, place / shape.width, place % shape.width);
    const double added = double{made.bias[output]} + double{made.shift[plane]} + double{made.residual[at]};
    largest = std::max(largest, std::fabs(sum));
    error = std::max(error, std::fabs(double{y[at]} - sum - added));
  }
  CHECK(error <= 4e-6 * (largest + 3));
}

// On a thread of its own for each second task.
void run_apart(void*, std::size_t count, Parallel::Body body, void* data) {
  std::thread other([=] {
    for (std::size_t index = 1; index < count; index += 2) body(data, index);
  });
  for (std::size_t index = 0; index < count; index += 2) body(data, index);
  other.join();
}

}  // namespace

TEST(convolutions_are_the_direct_sums) {
  if (kernels::level() < kernels::Level::avx512) return;
  check_case({1, 3, 1, 1, 1});
  check_case({2, 5, 17, 7, 9});
  check_case({3, 16, 5, 4, 8});
  check_case({1, 4, 33, 5, 70});   // rows longer than a block of tiles, one output in a group of its own
  check_case({2, 170, 40, 8, 8});  // more inputs than are summed at once
  check_case({1, 2, 3, 66, 64});   // more blocks than are computed together
}

TEST(convolutions_depend_on_neither_threads_nor_other_pictures) {
  if (kernels::level() < kernels::Level::avx512) return;
  Case made = random_case({3, 40, 70, 9, 13});
  const std::vector<float> together = convolved(made, kernels::serial());
  CHECK(convolved(made, Parallel(run_apart, nullptr, 2)) == together);
  Case alone = random_case(made.shape);
  alone.shape.batch = 1;
  const std::size_t inputs = made.shape.inputs * made.plane(), outputs = made.shape.outputs * made.plane();
  alone.x.assign(made.x.begin() + static_cast<std::ptrdiff_t>(inputs), made.x.end());
  alone.shift.assign(made.shift.begin() + 70, made.shift.end());
  alone.residual.assign(made.residual.begin() + static_cast<std::ptrdiff_t>(outputs), made.residual.end());
  const std::vector<float> second = convolved(alone, kernels::serial());
  CHECK(std::memcmp(second.data(), together.data() + outputs, outputs * sizeof(float)) == 0);
}

TEST(an_activation_follows_the_sum) {
  if (kernels::level() < kernels::Level::avx512) return;
  Case made = random_case({1, 4, 3, 5, 6});
  const std::vector<float> plain = convolved(made, kernels::serial());
  const std::vector<float> y = convolved(made, kernels::serial(), kernels::Activation::relu);
  for (std::size_t at = 0; at < y.size(); ++at) CHECK(y[at] == std::max(plain[at], 0.0F));
}

TEST(a_convolution_may_overwrite_its_residual) {
  if (kernels::level() < kernels::Level::avx512) return;
  Case made = random_case({2, 18, 20, 6, 10});
  const std::vector<float> expected = convolved(made, kernels::serial());
  std::vector<float> y = made.residual;
  const kernels::ConvEpilogue epilogue{made.bias.data(), made.shift.data(), y.data(),
                                       kernels::Activation::none};
  kernels::conv3x3_f32(made.shape, made.x.data(), made.packed.as<float>(), epilogue, y.data(),
                       kernels::serial());
  CHECK(y == expected);
}

}  // namespace vlrt::test

#endif
