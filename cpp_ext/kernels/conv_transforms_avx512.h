// Between pictures and the matrices of minimal filtering, 16 tiles or filters at once.
#pragma once

#include <cstddef>

#include "conv_shape.h"
#include "conv_tiles.h"

namespace vlrt::kernels {

inline constexpr std::size_t kPlaces = kSide * kSide;

// One channel's tiles of a block to 36 vectors, `stride` floats from one to the next.
// `picture` points to the channel in the first picture, the next picture's lies `apart` floats on.
void transform_tiles(const ConvShape& shape, const TileBlock& block, const float* picture, std::size_t apart,
                     float* vectors, std::size_t stride);

// Filters [inputs][9][16] to 36 matrices [inputs][16], `stride` floats from one to the next.
void transform_filters(std::size_t inputs, const float* filters, float* matrices, std::size_t stride);

// One channel's products [36][16] to the places of a block's tiles in y.
void transform_products(const ConvShape& shape, const TileBlock& block, const float* products,
                        std::size_t channel, const ConvEpilogue& epilogue, float* y);

}  // namespace vlrt::kernels
