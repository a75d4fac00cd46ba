// Products of bytes against whole numbers summed plainly, at sizes that meet every tile, and bit for bit
// against themselves.
#if defined(VLRT_HAS_KERNELS)

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "cpu.h"
#include "kernel_cases.h"
#include "linear_int8.h"
#include "linear_int8_rows.h"
#include "vlrt/aligned.h"
#include "vlrt/noise.h"

namespace vlrt::test {

namespace {

using kernels::Activation;
using kernels::LinearShape;
using kernels::Parallel;
using kernels::RowScale;

std::vector<float> random_floats(TorchGenerator& generator, std::size_t count) {
  std::vector<float> values(count);
  for (auto& value : values) value = static_cast<float>(generator.random() % 3001) / 1000.0f - 1.0f;
  return values;
}

// DynamicQuantizeLinear of one row, as the ONNX standard writes it.
RowScale scale_of(const float* row, std::size_t inner) {
  float least = 0.0f, most = 0.0f;
  for (std::size_t k = 0; k < inner; ++k) {
    least = std::min(least, row[k]);
    most = std::max(most, row[k]);
  }
  const float scale = most == least ? 1.0f : (most - least) / 255.0f;
  return {scale, static_cast<std::int32_t>(std::nearbyint(std::clamp(-least / scale, 0.0f, 255.0f)))};
}

std::int32_t byte_of(float x, const RowScale& row) {
  return std::clamp(static_cast<std::int32_t>(std::nearbyint(x / row.scale)) + row.zero_point, 0, 255);
}

struct Case {
  LinearShape shape;
  std::vector<float> x, scales, bias, residual;
  std::vector<std::int8_t> w;
  std::vector<std::int32_t> sums;
  AlignedBuffer packed;

  Case(const LinearShape& of, TorchGenerator& generator)
      : shape(of),
        x(random_floats(generator, of.rows * of.inner)),
        scales(random_floats(generator, of.columns)),
        bias(random_floats(generator, of.columns)),
        residual(random_floats(generator, of.rows * of.columns)),
        w(of.inner * of.columns),
        sums(of.columns),
        packed((of.columns + 15) / 16 * ((of.inner + 3) / 4) * 64) {
    for (auto& scale : scales) scale *= 0.01f;
    for (auto& weight : w) weight = static_cast<std::int8_t>(generator.random() % 256);
    for (std::size_t at = 0; at < w.size(); ++at) {
      const std::size_t k = at / of.columns, column = at % of.columns;
      const std::size_t step = column / 16 * ((of.inner + 3) / 4) + k / 4;
      packed.as<std::int8_t>()[(step * 16 + column % 16) * 4 + k % 4] = w[at];
      sums[column] += w[at];
    }
  }

  std::vector<float> run(Activation activation, const Parallel& parallel) const {
    return run(x, activation, parallel);
  }

  // As many first rows as `some` has.
  std::vector<float> run(const std::vector<float>& some, Activation activation,
                         const Parallel& parallel) const {
    const std::size_t rows = shape.inner == 0 ? shape.rows : some.size() / shape.inner;
    std::vector<float> y(residual.begin(),
                         residual.begin() + static_cast<std::ptrdiff_t>(rows * shape.columns));
    kernels::linear_int8({rows, shape.inner, shape.columns}, some.data(), packed.as<std::int8_t>(),
                         scales.data(), sums.data(), {bias.data(), y.data(), activation}, y.data(), parallel);
    return y;
  }

  double expected(Activation activation, std::size_t row, std::size_t column) const {
    const float* values = x.data() + row * shape.inner;
    const RowScale scale = scale_of(values, shape.inner);
    std::int64_t sum = 0;
    for (std::size_t k = 0; k < shape.inner; ++k)
      sum += (byte_of(values[k], scale) - scale.zero_point) * w[k * shape.columns + column];
    const double product = static_cast<double>(sum) * scale.scale * scales[column];
    return kernels::activate(activation, static_cast<float>(product + bias[column])) +
           residual[row * shape.columns + column];
  }
};

bool agrees(const Case& c, Activation activation) {
  const std::vector<float> y = c.run(activation, kernels::serial());
  for (std::size_t row = 0; row < c.shape.rows; ++row)
    for (std::size_t column = 0; column < c.shape.columns; ++column) {
      const double expected = c.expected(activation, row, column);
      if (!near(y[row * c.shape.columns + column], expected, 2e-6 * (2.0 + std::fabs(expected))))
        return false;
    }
  return true;
}

bool quantises(const std::vector<float>& x, std::size_t rows) {
  const std::size_t inner = x.size() / rows;
  kernels::QuantisedRows held;
  held.quantise(x.data(), rows, inner, kernels::serial());
  for (std::size_t tile = 0; tile < held.tiles(); ++tile)
    for (std::size_t at = 0; at < held.tile_rows(tile); ++at) {
      const std::size_t row = held.first_row(tile) + at;
      const RowScale expected = scale_of(x.data() + row * inner, inner), &got = held.scales()[row];
      if (got.scale != expected.scale || got.zero_point != expected.zero_point) return false;
      for (std::size_t k = 0; k < inner; ++k)
        if (held.tile(tile)[(k / 4 * held.tile_rows(tile) + at) * 4 + k % 4] !=
            byte_of(x[row * inner + k], expected))
          return false;
    }
  return true;
}

// Rows of a scale that is a whole number, where every other quotient lies in the middle between two integers,
// or in the float beside.
std::vector<float> near_ties(std::size_t rows, std::size_t inner, TorchGenerator& generator) {
  std::vector<float> x(rows * inner);
  for (std::size_t at = 0; at < x.size(); ++at) {
    const auto scale = static_cast<float>(1 + at / inner * 3);
    const float middle = (static_cast<float>(generator.random() % 255) - 99.5f) * scale;
    x[at] = std::nextafter(middle, static_cast<float>(generator.random() % 3) * middle);
    if (at % inner == 0) x[at] = -100.0f * scale;
    if (at % inner == 1) x[at] = 155.0f * scale;
  }
  return x;
}

}  // namespace

TEST(linear_int8_agrees_with_sums_of_whole_numbers) {
  if (kernels::level() < kernels::Level::avx512_vnni) return;
  TorchGenerator generator(11);
  std::size_t next = 0;
  for (const std::size_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 25, 71})
    for (const std::size_t inner : {0, 1, 16, 35, 66})
      for (const std::size_t columns : {1, 16, 47, 64, 170})
        CHECK(
            agrees(Case({rows, inner, columns}, generator), kActivations[next++ % std::size(kActivations)]));
}

TEST(linear_int8_spreads_large_products_over_tasks) {
  if (kernels::level() < kernels::Level::avx512_vnni) return;
  TorchGenerator generator(12);
  for (const LinearShape& shape :
       {LinearShape{1, 1100, 700}, {70, 9000, 20}, {40, 130, 800}, {700, 20, 35}}) {
    const Case large(shape, generator);
    CHECK(agrees(large, Activation::none));
    CHECK(large.run(Activation::none, kernels::serial()) ==
          large.run(Activation::none, Parallel(backwards, nullptr, 3)));
  }
}

TEST(linear_int8_gives_a_row_the_same_bits_alone_and_in_any_company) {
  if (kernels::level() < kernels::Level::avx512_vnni) return;
  TorchGenerator generator(13);
  const Case whole({75, 530, 150}, generator);
  const std::vector<float> y = whole.run(Activation::gelu, kernels::serial());
  CHECK(y == whole.run(Activation::gelu, Parallel(backwards, nullptr, 2)));
  for (const std::size_t rows : {1, 2, 5, 8, 12, 13, 30}) {
    const std::vector<float> some(whole.x.begin(), whole.x.begin() + static_cast<std::ptrdiff_t>(rows * 530));
    const std::vector<float> part = whole.run(some, Activation::gelu, Parallel(backwards, nullptr, 2));
    CHECK(std::memcmp(part.data(), y.data(), part.size() * sizeof(float)) == 0);
  }
}

TEST(rows_quantise_as_the_standard_says) {
  if (kernels::level() < kernels::Level::avx512_vnni) return;
  TorchGenerator generator(14);
  for (const std::size_t rows : {1, 2, 3, 4, 7, 12, 13, 26})
    for (const std::size_t inner : {2, 16, 31, 500}) {
      CHECK(quantises(random_floats(generator, rows * inner), rows));
      CHECK(quantises(near_ties(rows, inner, generator), rows));
    }
  const float tiny = std::numeric_limits<float>::denorm_min();
  CHECK(quantises({0.0f, 0.0f, 5.0f, 9.0f, -3.0f, -0.1f, 700 * tiny, -99 * tiny, 1e-37f, 2e-38f, 3e38f, 1.0f},
                  6));
}

TEST(linear_int8_keeps_strange_rows_to_themselves) {
  if (kernels::level() < kernels::Level::avx512_vnni) return;
  TorchGenerator generator(15);
  const Case plain({4, 50, 20}, generator);
  std::vector<float> x = plain.x;
  x[0 * 50 + 7] = std::numeric_limits<float>::quiet_NaN();
  x[1 * 50 + 49] = std::numeric_limits<float>::infinity();
  std::fill_n(x.begin() + 100, 50, 0.0f);
  const std::vector<float> y = plain.run(Activation::none, kernels::serial());
  const std::vector<float> got = plain.run(x, Activation::none, kernels::serial());
  for (std::size_t column = 0; column < 20; ++column) {
    CHECK(std::isnan(got[column]) && std::isnan(got[20 + column]));
    CHECK(got[40 + column] == plain.bias[column] + plain.residual[40 + column]);
    CHECK(got[60 + column] == y[60 + column]);
  }
}

}  // namespace vlrt::test

#endif
