#include <algorithm>

#include "activations_avx512.h"
#include "linear_int8_finish.h"

namespace vlrt::kernels {

namespace {

struct PanelColumns {
  std::size_t count;
  __m512 scales, bias;
  __m512i sums;
};

VLRT_VECTOR __m512 product_of(const std::int32_t* sums, const RowScale& row, const PanelColumns& columns) {
  const __m512i shift = _mm512_mullo_epi32(columns.sums, _mm512_set1_epi32(row.zero_point));
  const __m512i sum = _mm512_sub_epi32(_mm512_load_si512(sums), shift);
  const __m512 scale = _mm512_mul_ps(columns.scales, _mm512_set1_ps(row.scale));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, columns.bias);
}

template <Activation activation>
void finish(const Int8Panel& panel, const PanelColumns& columns, const float* residual, float* y,
            std::size_t row_floats) {
  for (std::size_t row = 0; row < panel.rows; ++row) {
    const __m512 sum = product_of(panel.sums + row * panel.stride, panel.scales[row], columns);
    __m512 out = activate_ps(activation, sum);
    if (residual) out = _mm512_add_ps(out, load_first(residual + row * row_floats, columns.count));
    store_first(y + row * row_floats, columns.count, out);
  }
}

using Finish = void (*)(const Int8Panel&, const PanelColumns&, const float*, float*, std::size_t);

Finish finish_of(Activation activation) {
  switch (activation) {
    case Activation::relu:
      return finish<Activation::relu>;
    case Activation::gelu:
      return finish<Activation::gelu>;
    case Activation::gelu_tanh:
      return finish<Activation::gelu_tanh>;
    case Activation::quick_gelu:
      return finish<Activation::quick_gelu>;
    case Activation::silu:
      return finish<Activation::silu>;
    case Activation::none:
      break;
  }
  return finish<Activation::none>;
}

}  // namespace

void finish_panel(const Int8Panel& panel, const Int8Columns& columns, const Epilogue& epilogue, float* y) {
  const std::size_t first = panel.panel * kLanes, count = std::min(columns.count - first, kLanes);
  const __mmask16 mask = first_lanes(count);
  const PanelColumns held{count, load_first(columns.scales + first, count),
                          epilogue.bias ? load_first(epilogue.bias + first, count) : _mm512_setzero_ps(),
                          _mm512_maskz_loadu_epi32(mask, columns.sums + first)};
  const std::size_t at = panel.first_row * columns.count + first;
  const float* residual = epilogue.residual ? epilogue.residual + at : nullptr;
  finish_of(epilogue.activation)(panel, held, residual, y + at, columns.count);
}

}  // namespace vlrt::kernels
