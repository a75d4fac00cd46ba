// How the tensors of attention lie in memory: layouts by name, and the strides that follow from them.
#pragma once

#include <cstddef>
#include <string>

#include "attention.h"
#include "operator.h"

namespace vlrt::ort {

// The order of the axes batch, head, token and dimension (of a head).
enum class Axes {
  bhtd,
  bhdt,
  bthd,
  bt_hd,  // `bt(hd)`: heads and their dimensions are one axis
};

struct Layout {
  Axes axes;
  // `bt(hd) 2/3` is the second third of the last axis, as a product of queries, keys and values gives them.
  std::size_t part = 1, parts = 1;
};

Layout layout_named(const std::string& name);

struct Sizes {
  std::size_t batch, heads, tokens, width;
};

// Takes a tensor's shape apart; `heads` is what the node says, and counts where the layout does not show it.
Sizes sizes_of(const Shape& shape, Layout layout, std::size_t heads, const char* name);

// The other way round.
Shape shape_of(const Sizes& sizes, Layout layout);

kernels::Strides strides_of(const Sizes& sizes, Layout layout);

// Where the layout's part begins.
std::size_t offset_of(const Sizes& sizes, Layout layout);

// Strides of a mask that broadcasts to [batch, heads, queries, keys] from the right, as NumPy does.
kernels::Strides mask_strides(const Shape& mask, const kernels::AttentionShape& scores);

}  // namespace vlrt::ort
