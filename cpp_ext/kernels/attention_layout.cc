#include "attention_layout.h"

#include <array>

namespace vlrt::ort {

Layout layout_named(const std::string& name) {
  if (name == "bhtd") return {Axes::bhtd};
  if (name == "bhdt") return {Axes::bhdt};
  if (name == "bthd") return {Axes::bthd};
  if (name == "bt(hd)") return {Axes::bt_hd};
  constexpr std::size_t kDigit = 7;  // bt(hd) 2/3
  const auto digit = [&name](std::size_t at) { return static_cast<std::size_t>(name[at] - '0'); };
  if (name.size() == kDigit + 3 && name.starts_with("bt(hd) ") && name[kDigit + 1] == '/') {
    const Layout found{Axes::bt_hd, digit(kDigit), digit(kDigit + 2)};
    if (1 <= found.part && found.part <= found.parts && found.parts <= 9) return found;
  }
  throw Failure("unknown layout `" + name + "`");
}

Sizes sizes_of(const Shape& shape, Layout layout, std::size_t heads, const char* name) {
  const std::size_t rank = layout.axes == Axes::bt_hd ? 3 : 4;
  if (shape.rank != rank) {
    throw Failure(std::string("`") + name + "` is " + shape.text() + ", expected " + std::to_string(rank) +
                  " axes");
  }
  const auto at = [&shape](std::size_t axis) { return static_cast<std::size_t>(shape.sizes[axis]); };
  switch (layout.axes) {
    case Axes::bhtd:
      return {at(0), at(1), at(2), at(3)};
    case Axes::bhdt:
      return {at(0), at(1), at(3), at(2)};
    case Axes::bthd:
      return {at(0), at(2), at(1), at(3)};
    case Axes::bt_hd:
      break;
  }
  const std::size_t all = heads * layout.parts;
  if (at(2) % all != 0) {
    const std::string expected = ", expected a multiple of " + std::to_string(all) + " heads at the end";
    throw Failure(std::string("`") + name + "` is " + shape.text() + expected);
  }
  return {at(0), heads, at(1), at(2) / all};
}

Shape shape_of(const Sizes& sizes, Layout layout) {
  const auto shape = [](auto... axes) {
    return Shape{{static_cast<std::int64_t>(axes)...}, sizeof...(axes)};
  };
  switch (layout.axes) {
    case Axes::bhtd:
      return shape(sizes.batch, sizes.heads, sizes.tokens, sizes.width);
    case Axes::bhdt:
      return shape(sizes.batch, sizes.heads, sizes.width, sizes.tokens);
    case Axes::bthd:
      return shape(sizes.batch, sizes.tokens, sizes.heads, sizes.width);
    case Axes::bt_hd:
      break;
  }
  return shape(sizes.batch, sizes.tokens, sizes.heads * sizes.width);
}

kernels::Strides strides_of(const Sizes& sizes, Layout layout) {
  const auto heads = static_cast<std::ptrdiff_t>(sizes.heads),
             tokens = static_cast<std::ptrdiff_t>(sizes.tokens),
             width = static_cast<std::ptrdiff_t>(sizes.width);
  const auto parts = static_cast<std::ptrdiff_t>(layout.parts);
  const std::ptrdiff_t one_batch = heads * tokens * width * parts;
  switch (layout.axes) {
    case Axes::bhtd:
      return {one_batch, tokens * width, width, 1};
    case Axes::bhdt:
      return {one_batch, tokens * width, 1, tokens};
    case Axes::bthd:
    case Axes::bt_hd:
      break;
  }
  return {one_batch, width, heads * width * parts, 1};
}

std::size_t offset_of(const Sizes& sizes, Layout layout) {
  return (layout.part - 1) * sizes.heads * sizes.width;
}

kernels::Strides mask_strides(const Shape& mask, const kernels::AttentionShape& scores) {
  const std::array<std::size_t, 4> full{scores.batch, scores.heads, scores.queries, scores.keys};
  std::array<std::ptrdiff_t, 4> strides{};
  std::ptrdiff_t step = 1;
  if (mask.rank > full.size()) throw Failure("the mask is " + mask.text() + ", expected 4 axes at most");
  for (std::size_t back = 1; back <= mask.rank; ++back) {
    const auto size = static_cast<std::size_t>(mask.sizes[mask.rank - back]);
    const std::size_t axis = full.size() - back;
    if (size != 1 && size != full[axis]) {
      const Shape wanted = shape_of({full[0], full[1], full[2], full[3]}, {Axes::bhtd});
      throw Failure("the mask is " + mask.text() + ", which does not broadcast to " + wanted.text());
    }
    strides[axis] = size == 1 ? 0 : step;
    step *= static_cast<std::ptrdiff_t>(size);
  }
  return {strides[0], strides[1], strides[2], strides[3]};
}

}  // namespace vlrt::ort
