// Single columns of weights that were packed for `linear_int8`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vlrt::kernels {

// out [inner] = the column's bytes times its scale; `packed` as `linear_int8` reads it.
void unpack_column(const std::int8_t* packed, std::size_t inner, std::size_t column, float scale, float* out);

}  // namespace vlrt::kernels
