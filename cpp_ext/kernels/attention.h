// Scaled dot-product attention that never holds all scores.
#pragma once

#include <cstddef>

#include "parallel.h"

namespace vlrt::kernels {

// Steps from one element to the next along each axis, in elements; 0 broadcasts.
struct Strides {
  std::ptrdiff_t batch, head, token, lane;
};

struct AttentionShape {
  std::size_t batch, heads, queries, keys, width, value_width;
  float scale;
};

// `query` [batch, heads, queries, width], `key` [batch, heads, keys, width], `value` [batch, heads, keys,
// value_width], `out` [batch, heads, queries, value_width] and `mask`, which is added to the scores (or
// null), [batch, heads, queries as token, keys as lane]: each lies in memory as its strides say.
struct Attended {
  const float *query, *key, *value, *mask;
  float* out;
  Strides query_at, key_at, value_at, mask_at, out_at;
};

// out = softmax(scale * query key^T + mask) value, in float32.
//
// Keys pass block by block under a running maximum (Milakov and Gimelshein, "Online normalizer calculation
// for softmax", 2018, algorithm 3; Dao et al., "FlashAttention", 2022, algorithm 1). Masks of minus infinity
// count as the lowest finite number, so a query whose keys are all masked gets the mean of the values, as
// torch.nn.functional.scaled_dot_product_attention gives with masks of torch.finfo(torch.float32).min.
//
// A query's result depends neither on the other queries nor on the threads; only whether there are at most
// `kFewQueries` of them decides in which order sums are taken. Needs AVX-512 F, BW, DQ and VL.
void attention_f32(const AttentionShape& shape, const Attended& attended, const Parallel& parallel);

inline constexpr std::size_t kFewQueries = 12;

}  // namespace vlrt::kernels
