// Gated linear units with GELU, behind the product that makes both halves.
#pragma once

#include <cstddef>

#include "parallel.h"

namespace vlrt::kernels {

// y = a gelu(b) for rows [a, b] of x: x [rows, 2 columns], y [rows, columns] (Shazeer, arXiv 2002.05202,
// equation 6). Needs Level::avx512.
void gated_gelu_f32(std::size_t rows, std::size_t columns, const float* x, float* y,
                    const Parallel& parallel);

}  // namespace vlrt::kernels
