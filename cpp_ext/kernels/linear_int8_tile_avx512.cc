#include <immintrin.h>

#include <array>
#include <cstring>
#include <utility>

#include "linear_int8_tile.h"

namespace vlrt::kernels {

namespace {

constexpr std::size_t kStepBytes = 64;

// How far ahead weights are asked for, into the second cache: one that is asked into the first holds others
// up. Tiles of many rows take less per time and need more, so that memory is never idle.
template <std::size_t P>
constexpr std::size_t kAheadBytes = P == 4 ? 2048 : 8192;

// A step is four bytes of every row, and four rows of weights.
template <std::size_t R, std::size_t P>
[[gnu::always_inline]] inline void add_step(const std::uint8_t* x, const std::int8_t* const* panels,
                                            std::size_t step, __m512i (&sums)[R][P]) {
  __m512i weights[P];
#pragma GCC unroll 4
  for (std::size_t panel = 0; panel < P; ++panel) {
    const std::int8_t* from = panels[panel] + step * kStepBytes;
    weights[panel] = _mm512_load_si512(from);
    _mm_prefetch(reinterpret_cast<const char*>(from) + kAheadBytes<P>, _MM_HINT_T1);
  }
#pragma GCC unroll 16
  for (std::size_t row = 0; row < R; ++row) {
    std::int32_t four;
    std::memcpy(&four, x + (step * R + row) * sizeof four, sizeof four);
    const __m512i bytes = _mm512_set1_epi32(four);
#pragma GCC unroll 4
    for (std::size_t panel = 0; panel < P; ++panel) {
      sums[row][panel] = _mm512_dpbusd_epi32(sums[row][panel], bytes, weights[panel]);
    }
  }
}

template <std::size_t R, std::size_t P>
void sum_tile(const Int8Tile& tile, std::int32_t* out) {
  __m512i sums[R][P];
#pragma GCC unroll 16
  for (std::size_t row = 0; row < R; ++row) {
#pragma GCC unroll 4
    for (std::size_t panel = 0; panel < P; ++panel) sums[row][panel] = _mm512_setzero_si512();
  }
  for (std::size_t step = 0; step < tile.steps; ++step) add_step<R, P>(tile.x, tile.panels, step, sums);
#pragma GCC unroll 16
  for (std::size_t row = 0; row < R; ++row) {
#pragma GCC unroll 4
    for (std::size_t panel = 0; panel < P; ++panel) {
      _mm512_storeu_si512(out + (row * P + panel) * kInt8Panel, sums[row][panel]);
    }
  }
}

using SumTile = void (*)(const Int8Tile&, std::int32_t*);

template <std::size_t P, std::size_t... R>
constexpr std::array<SumTile, sizeof...(R)> by_rows(std::index_sequence<R...>) {
  return {sum_tile<R + 1, P>...};
}

constexpr auto kOnePanel = by_rows<1>(std::make_index_sequence<12>());
constexpr auto kTwoPanels = by_rows<2>(std::make_index_sequence<12>());
constexpr auto kFourPanels = by_rows<4>(std::make_index_sequence<6>());

}  // namespace

void sum_products(const Int8Tile& tile, std::int32_t* sums) {
  const std::size_t row = tile.rows - 1;
  const SumTile sum = tile.panel_count == 4   ? kFourPanels[row]
                      : tile.panel_count == 2 ? kTwoPanels[row]
                                              : kOnePanel[row];
  sum(tile, sums);
}

}  // namespace vlrt::kernels
