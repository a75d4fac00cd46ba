// Layer norms and single columns of packed bytes, in buffers that end where they may be read to.
#if defined(VLRT_HAS_KERNELS)

#include <cmath>

#include "check.h"
#include "cpu.h"
#include "layer_norm.h"
#include "linear_int8_columns.h"

namespace vlrt::test {

namespace {

bool normalises(std::size_t rows, std::size_t width) {
  std::vector<float> x(rows * width), y(rows * width), scale(width), bias(width);
  for (std::size_t at = 0; at < x.size(); ++at) x[at] = static_cast<float>(at * 7 % 31) - 11.0f;
  for (std::size_t at = 0; at < width; ++at)
    scale[at] = 1.0f + static_cast<float>(at), bias[at] = scale[at] / 3.0f;
  kernels::layer_norm_f32(rows, width, x.data(), {scale.data(), bias.data(), 1e-3f}, y.data(),
                          kernels::serial());
  for (std::size_t at = 0; at < x.size(); ++at) {
    const float* row = x.data() + at / width * width;
    double mean = 0, squares = 0;
    for (std::size_t k = 0; k < width; ++k) mean += row[k] / static_cast<double>(width);
    for (std::size_t k = 0; k < width; ++k) squares += (row[k] - mean) * (row[k] - mean);
    const double apart = (x[at] - mean) / std::sqrt(squares / static_cast<double>(width) + 1e-3);
    if (!near(y[at], apart * scale[at % width] + bias[at % width], 1e-4)) return false;
  }
  return true;
}

}  // namespace

TEST(layer_norm_normalises_rows_of_any_width) {
  if (kernels::level() < kernels::Level::avx512) return;
  for (const std::size_t width : {1, 5, 16, 63, 64, 150})
    for (const std::size_t rows : {0, 1, 3, 300}) CHECK(normalises(rows, width));
}

TEST(columns_are_unpacked_as_they_were_packed) {
  const std::size_t inner = 7, columns = 18, steps = 2;
  std::vector<std::int8_t> packed(2 * steps * 64);
  const auto weight = [](std::size_t k, std::size_t column) {
    return static_cast<std::int8_t>(k * 18 + column);
  };
  for (std::size_t k = 0; k < inner; ++k)
    for (std::size_t column = 0; column < columns; ++column)
      packed[((column / 16 * steps + k / 4) * 16 + column % 16) * 4 + k % 4] = weight(k, column);
  for (std::size_t column = 0; column < columns; ++column) {
    std::vector<float> out(inner);
    kernels::unpack_column(packed.data(), inner, column, 0.5f, out.data());
    for (std::size_t k = 0; k < inner; ++k) CHECK(out[k] == 0.5f * static_cast<float>(weight(k, column)));
  }
}

}  // namespace vlrt::test

#endif
