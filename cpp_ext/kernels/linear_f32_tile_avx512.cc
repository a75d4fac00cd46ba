#include <algorithm>
#include <array>
#include <utility>

#include "activations_avx512.h"
#include "linear_f32_tile.h"

namespace vlrt::kernels {
namespace {

constexpr std::size_t kMostSums = kMostRows * 2 * kPanelColumns;

template <std::size_t R, std::size_t P>
struct Sums {
  __m512 at[R][P];
};

// One step of `inner`: a line of each panel, an element of each row.
template <std::size_t R, std::size_t P>
VLRT_VECTOR void multiply_step(Sums<R, P>& sums, const float* x, std::size_t row_stride, const float* panels,
                               std::size_t panel_stride, const float* fetch) {
  // Into the second cache where that is what keeps memory busy: the first has room for fewer lines on their
  // way.
  constexpr _mm_hint hint = P > 2 || R <= kRowsInPlace ? _MM_HINT_T1 : _MM_HINT_T0;
  __m512 w[P];
#pragma GCC unroll 4
  for (std::size_t p = 0; p < P; ++p) {
    w[p] = _mm512_load_ps(panels + p * panel_stride);
    _mm_prefetch(reinterpret_cast<const char*>(fetch + p * panel_stride), hint);
  }
#pragma GCC unroll 14
  for (std::size_t r = 0; r < R; ++r) {
    const __m512 element = _mm512_set1_ps(x[r * row_stride]);
#pragma GCC unroll 4
    for (std::size_t p = 0; p < P; ++p) sums.at[r][p] = _mm512_fmadd_ps(element, w[p], sums.at[r][p]);
  }
}

template <std::size_t R, std::size_t P>
void sum_products(const F32Tile& tile, float* to) {
  constexpr bool packed = R > kRowsInPlace;
  const std::size_t panel_stride = tile.inner * kPanelColumns;
  const std::size_t row_stride = packed ? kBlockInner : tile.inner;
  const std::size_t block_stride = packed ? kBlockInner * R : kBlockInner;
  Sums<R, P> sums;
  for (auto& row : sums.at)
    for (auto& sum : row) sum = _mm512_setzero_ps();
  const float* x = tile.x;
  const float* panels = tile.panels;
  const float* fetch = tile.fetch.at;
  for (std::size_t k = 0; k < tile.inner; k += kBlockInner, x += block_stride) {
    if (k == tile.fetch.turn) fetch = tile.fetch.then;
    const std::size_t steps = std::min(kBlockInner, tile.inner - k);
#pragma GCC unroll 2
    for (std::size_t step = 0; step < steps; ++step, panels += kPanelColumns, fetch += tile.fetch.step)
      multiply_step(sums, x + step, row_stride, panels, panel_stride, fetch);
  }
  for (std::size_t r = 0; r < R; ++r)
    for (std::size_t p = 0; p < P; ++p) _mm512_store_ps(to + (r * P + p) * kPanelColumns, sums.at[r][p]);
}

template <Activation activation>
void write(const F32Tile& tile, const float* sums) {
  for (std::size_t p = 0; p < tile.panel_count; ++p) {
    const std::size_t column = p * kPanelColumns;
    if (column >= tile.columns) break;
    const std::size_t count = std::min(kPanelColumns, tile.columns - column);
    const __m512 bias = tile.bias == nullptr ? _mm512_setzero_ps() : load_first(tile.bias + column, count);
    for (std::size_t r = 0; r < tile.rows; ++r) {
      const std::size_t at = r * tile.row_columns + column;
      const __m512 sum = _mm512_load_ps(sums + (r * tile.panel_count + p) * kPanelColumns);
      __m512 value = activate_ps(activation, _mm512_add_ps(sum, bias));
      if (tile.residual != nullptr) value = _mm512_add_ps(value, load_first(tile.residual + at, count));
      store_first(tile.y + at, count, value);
    }
  }
}

void write(const F32Tile& tile, const float* sums) {
  switch (tile.activation) {
    case Activation::none:
      return write<Activation::none>(tile, sums);
    case Activation::relu:
      return write<Activation::relu>(tile, sums);
    case Activation::gelu:
      return write<Activation::gelu>(tile, sums);
    case Activation::gelu_tanh:
      return write<Activation::gelu_tanh>(tile, sums);
    case Activation::quick_gelu:
      return write<Activation::quick_gelu>(tile, sums);
    case Activation::silu:
      return write<Activation::silu>(tile, sums);
  }
}

using Sum = void (*)(const F32Tile&, float*);

template <std::size_t R, std::size_t P>
constexpr Sum sum_of() {
  if constexpr (P <= tile_panels(R))
    return &sum_products<R, P>;
  else
    return nullptr;
}

template <std::size_t P, std::size_t... R>
constexpr std::array<Sum, sizeof...(R)> sums_of(std::index_sequence<R...>) {
  return {sum_of<R + 1, P>()...};
}

using Rows = std::make_index_sequence<kMostRows>;
constexpr std::array<std::array<Sum, kMostRows>, kMostPanels> kSums = {
    sums_of<1>(Rows{}), sums_of<2>(Rows{}), sums_of<3>(Rows{}), sums_of<4>(Rows{})};

// Asks for the lines that will be written, while the sums still take their time. Inlined, since GCC removes
// calls of functions that only prefetch.
VLRT_VECTOR void fetch_written(const F32Tile& tile) {
  for (std::size_t r = 0; r < tile.rows; ++r) {
    for (std::size_t p = 0; p < tile.panel_count; ++p) {
      const std::size_t at = r * tile.row_columns + p * kPanelColumns;
      _mm_prefetch(reinterpret_cast<const char*>(tile.y + at), _MM_HINT_T1);
      if (tile.residual != nullptr && tile.residual != tile.y)
        _mm_prefetch(reinterpret_cast<const char*>(tile.residual + at), _MM_HINT_T1);
    }
  }
}

}  // namespace

void linear_f32_tile(const F32Tile& tile) {
  alignas(64) float sums[kMostSums];
  fetch_written(tile);
  kSums[tile.panel_count - 1][tile.rows - 1](tile, sums);
  write(tile, sums);
}

}  // namespace vlrt::kernels
