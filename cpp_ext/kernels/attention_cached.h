// Attention of new tokens to a cache, in which their keys and values are first put down.
#pragma once

#include <cstddef>

#include "parallel.h"

namespace vlrt::kernels {

struct CachedShape {
  std::size_t batch, heads;  // of the queries
  std::size_t key_heads;     // divides `heads`: neighbouring queries share keys and values
  std::size_t tokens;        // new ones in each row
  std::size_t positions;     // that the caches have room for
  std::size_t width;
  float scale;
};

struct Cached {
  const float* query;                // [batch, tokens, heads, width]
  const float *key, *value;          // [batch, tokens, key_heads, width]
  std::size_t query_step, key_step;  // from a token to the next, in floats
  const std::size_t* past;           // [batch]: positions already filled, past + tokens <= positions
  float *keys, *values;              // [batch, key_heads, positions, width]
  float* out;                        // [batch, tokens, heads * width]
};

// out = softmax(scale * query keys^T) values, where a token sees the positions up to its own.
//
// What onnxruntime's `GroupQueryAttention` computes without rotation, window or bias. Needs AVX-512 F, BW, DQ
// and VL.
void attention_cached_f32(const CachedShape& shape, const Cached& cached, const Parallel& parallel);

}  // namespace vlrt::kernels
