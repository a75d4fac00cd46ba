// Normals from uniforms, many at once.
#pragma once

#include <span>

namespace vlrt {

// Box & Muller 1958 over blocks of 16: the first eight uniforms in [0, 1) give radii, the last eight angles.
// Bit for bit what torch 2.13 draws on x86-64 (its `normal_fill` with AVX2), on every processor: logarithm,
// sine and cosine are Cephes' single-precision polynomials with the fused products of torch's build. A rest
// below 16 is left as it is.
void box_muller(std::span<float> uniforms);

}  // namespace vlrt
