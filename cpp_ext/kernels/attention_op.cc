// The operator `Attention`: softmax(scale * Q K^T + mask) V.
#include "attention.h"
#include "attention_layout.h"
#include "operators.h"

namespace vlrt::ort {
namespace {

class Attention {
 public:
  static constexpr const char* kName = "Attention";
  static constexpr Input kInputs[] = {
      {Element::f32}, {Element::f32}, {Element::f32}, {Element::f32, Presence::optional}};

  explicit Attention(const Setup& setup)
      : heads_(setup.size("heads")),
        scale_(setup.number("scale")),
        query_layout_(layout_named(setup.text("query_layout"))),
        key_layout_(layout_named(setup.text("key_layout"))),
        value_layout_(layout_named(setup.text("value_layout"))),
        output_layout_(layout_named(setup.text("output_layout"))) {
    if (output_layout_.parts != 1) throw Failure("the output is a part of nothing");
  }

  void run(Run& run) const {
    const Tensor query = run.input(0), key = run.input(1), value = run.input(2), mask = run.input(3);
    const Sizes asked = sizes_of(query.shape, query_layout_, heads_, "Q");
    const Sizes k = sizes_of(key.shape, key_layout_, heads_, "K");
    const Sizes v = sizes_of(value.shape, value_layout_, heads_, "V");
    const Sizes q = regrouped(asked, k, v, mask);
    check(q, k, v);
    const Sizes out{q.batch, q.heads, q.tokens, v.width};
    const kernels::AttentionShape shape{q.batch, q.heads, q.tokens, k.tokens, q.width, v.width, scale_};
    kernels::Attended attended{};
    attended.query = query.floats() + offset_of(q, query_layout_);
    attended.key = key.floats() + offset_of(k, key_layout_);
    attended.value = value.floats() + offset_of(v, value_layout_);
    attended.mask = mask.floats();
    attended.query_at = strides_of(q, query_layout_);
    attended.key_at = repeated(strides_of(k, key_layout_), k, q);
    attended.value_at = repeated(strides_of(v, value_layout_), v, q);
    attended.out_at = strides_of(out, output_layout_);
    if (mask.data != nullptr) attended.mask_at = mask_strides(mask.shape, shape);
    const Shape out_shape = shape_of({asked.batch, asked.heads, asked.tokens, v.width}, output_layout_);
    attended.out = run.output(out_shape);
    if (out_shape.count() != 0) kernels::attention_f32(shape, attended, run.parallel());
  }

 private:
  // Rows that ask the same memory, as the beams of a picture do, lie behind each other: they are its tokens.
  Sizes regrouped(const Sizes& q, const Sizes& k, const Sizes& v, const Tensor& mask) const {
    const bool joined = query_layout_.axes == Axes::bt_hd && output_layout_.axes == Axes::bt_hd;
    const bool in_order = query_layout_.parts == 1 && mask.data == nullptr;
    if (!joined || !in_order || k.batch == 0 || v.batch != k.batch || q.batch % k.batch != 0) return q;
    return {k.batch, q.heads, q.batch * q.tokens / k.batch, q.width};
  }

  void check(const Sizes& q, const Sizes& k, const Sizes& v) const {
    if (q.heads != heads_) throw mismatch("heads of Q", q.heads, heads_);
    if (q.width == 0 || k.width != q.width) throw mismatch("dimensions of a head of K", k.width, q.width);
    if (v.tokens != k.tokens) throw mismatch("tokens of V", v.tokens, k.tokens);
    if (k.tokens == 0) throw Failure("there are no keys");
    for (const Sizes& side : {k, v}) {
      if (side.batch != q.batch && side.batch != 1) throw mismatch("rows of the memory", side.batch, q.batch);
      if (side.heads != q.heads && side.heads != 1)
        throw mismatch("heads of the memory", side.heads, q.heads);
    }
  }

  static Failure mismatch(const char* what, std::size_t found, std::size_t expected) {
    return Failure(std::to_string(found) + " " + what + ", expected " + std::to_string(expected));
  }

  // Keys and values that all rows, or all heads, of the queries share.
  static kernels::Strides repeated(kernels::Strides at, const Sizes& side, const Sizes& q) {
    if (side.batch != q.batch) at.batch = 0;
    if (side.heads != q.heads) at.head = 0;
    return at;
  }

  std::size_t heads_;
  float scale_;
  Layout query_layout_, key_layout_, value_layout_, output_layout_;
};

}  // namespace

const CustomOp* attention_op() {
  return custom_op<Attention>();
}

}  // namespace vlrt::ort
