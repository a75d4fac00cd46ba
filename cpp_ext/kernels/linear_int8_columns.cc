#include "linear_int8_columns.h"

#include <algorithm>

namespace vlrt::kernels {

void unpack_column(const std::int8_t* packed, std::size_t inner, std::size_t column, float scale,
                   float* out) {
  const std::size_t steps = (inner + 3) / 4;
  const std::int8_t* from = packed + (column / 16 * steps * 16 + column % 16) * 4;
  for (std::size_t at = 0; at < inner; at += 4, from += 64) {
    for (std::size_t k = 0; k < std::min<std::size_t>(inner - at, 4); ++k) {
      out[at + k] = static_cast<float>(from[k]) * scale;
    }
  }
}

}  // namespace vlrt::kernels
