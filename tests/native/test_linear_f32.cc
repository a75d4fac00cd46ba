// Products in fp32 against plain sums in double, at sizes that meet every tile, and bit for bit against
// themselves.
#if defined(VLRT_HAS_KERNELS)

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "cpu.h"
#include "kernel_cases.h"
#include "linear_f32.h"
#include "vlrt/aligned.h"
#include "vlrt/noise.h"

namespace vlrt::test {

namespace {

using kernels::Activation;
using kernels::LinearShape;
using kernels::Parallel;

std::vector<float> random_floats(TorchGenerator& generator, std::size_t count) {
  std::vector<float> values(count);
  for (auto& value : values) value = static_cast<float>(generator.random() % 2001) / 1000.0f - 1.0f;
  return values;
}

struct Case {
  LinearShape shape;
  std::vector<float> x, w, bias, residual;
  AlignedBuffer packed;

  Case(const LinearShape& of, TorchGenerator& generator)
      : shape(of),
        x(random_floats(generator, of.rows * of.inner)),
        w(random_floats(generator, of.inner * of.columns)),
        bias(random_floats(generator, of.columns)),
        residual(random_floats(generator, of.rows * of.columns)),
        packed((of.columns + 15) / 16 * of.inner * 16 * sizeof(float)) {
    for (std::size_t k = 0; k < of.inner; ++k)
      for (std::size_t column = 0; column < of.columns; ++column)
        packed.as<float>()[(column / 16 * of.inner + k) * 16 + column % 16] = w[k * of.columns + column];
  }

  std::vector<float> run(Activation activation, const Parallel& parallel) const {
    std::vector<float> y(residual);
    kernels::linear_f32(shape, x.data(), packed.as<float>(), {bias.data(), y.data(), activation}, y.data(),
                        parallel);
    return y;
  }

  double expected(Activation activation, std::size_t row, std::size_t column) const {
    double sum = bias[column];
    for (std::size_t k = 0; k < shape.inner; ++k)
      sum += static_cast<double>(x[row * shape.inner + k]) * w[k * shape.columns + column];
    return kernels::activate(activation, static_cast<float>(sum)) + residual[row * shape.columns + column];
  }
};

bool agrees(const Case& c, Activation activation) {
  const std::vector<float> y = c.run(activation, kernels::serial());
  const double tolerance = 1e-6 * (2.0 + static_cast<double>(c.shape.inner));
  for (std::size_t row = 0; row < c.shape.rows; ++row)
    for (std::size_t column = 0; column < c.shape.columns; ++column)
      if (!near(y[row * c.shape.columns + column], c.expected(activation, row, column), tolerance))
        return false;
  return true;
}

float activated(Activation activation, float x) {
  AlignedBuffer one(16 * sizeof(float));
  one.as<float>()[0] = 1.0f;
  float y = 0.0f;
  kernels::linear_f32({1, 1, 1}, &x, one.as<float>(), {nullptr, nullptr, activation}, &y, kernels::serial());
  return y;
}

}  // namespace

TEST(linear_f32_agrees_with_sums_in_double) {
  if (kernels::level() < kernels::Level::avx512) return;
  TorchGenerator generator(7);
  std::size_t next = 0;
  for (const std::size_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 29, 71})
    for (const std::size_t inner : {0, 1, 16, 35})
      for (const std::size_t columns : {1, 16, 47, 64, 170})
        CHECK(
            agrees(Case({rows, inner, columns}, generator), kActivations[next++ % std::size(kActivations)]));
}

TEST(linear_f32_lets_each_task_pack_its_own_rows) {
  if (kernels::level() < kernels::Level::avx512) return;
  TorchGenerator generator(8);
  CHECK(agrees(Case({230, 35, 47}, generator), Activation::none));
}

TEST(linear_f32_gives_a_row_the_same_bits_alone_and_in_any_company) {
  if (kernels::level() < kernels::Level::avx512) return;
  TorchGenerator generator(9);
  Case whole({240, 53, 150}, generator);
  const std::vector<float> y = whole.run(Activation::gelu, kernels::serial());
  CHECK(y == whole.run(Activation::gelu, Parallel(backwards, nullptr, 2)));
  for (const std::size_t rows : {1, 5, 8, 12, 20}) {
    Case part = Case({rows, 53, 150}, generator);
    const std::size_t first = 240 - rows;
    part.packed = std::move(whole.packed);
    part.bias = whole.bias;
    part.x.assign(whole.x.begin() + static_cast<std::ptrdiff_t>(first * 53), whole.x.end());
    part.residual.assign(whole.residual.begin() + static_cast<std::ptrdiff_t>(first * 150),
                         whole.residual.end());
    const std::vector<float> alone = part.run(Activation::gelu, Parallel(backwards, nullptr, 2));
    CHECK(std::memcmp(alone.data(), y.data() + first * 150, alone.size() * sizeof(float)) == 0);
    whole.packed = std::move(part.packed);
  }
}

TEST(activations_are_good_to_two_in_ten_million) {
  if (kernels::level() < kernels::Level::avx512) return;
  for (const Activation activation : kActivations)
    for (float x = -12.0f; x < 12.0f; x += 0.0137f)
      CHECK(near(activated(activation, x), kernels::activate(activation, x),
                 2e-7 * std::max(std::fabs(x), 1.0f)));
}

TEST(activations_end_where_the_functions_do) {
  if (kernels::level() < kernels::Level::avx512) return;
  for (const Activation activation : kActivations) {
    CHECK(std::isnan(activated(activation, std::numeric_limits<float>::quiet_NaN())));
    CHECK(activated(activation, 1e30f) == 1e30f);
    CHECK(activation == Activation::none || activated(activation, -1e30f) == 0.0f);
  }
}

}  // namespace vlrt::test

#endif
