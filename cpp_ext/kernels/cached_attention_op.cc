// The operator `CachedAttention`: puts new keys and values into the caches and attends to what is filled of
// them.
#include <algorithm>
#include <vector>

#include "attention_cached.h"
#include "operator.h"
#include "operators.h"

namespace vlrt::ort {
namespace {

Failure mismatch(const char* what, const Shape& found, const char* expected) {
  return Failure(std::string(what) + " is " + found.text() + ", expected " + expected);
}

class CachedAttention {
 public:
  static constexpr const char* kName = "CachedAttention";
  static constexpr std::size_t kOutputs = 3;  // the result, and the caches as they are after it
  static constexpr Input kInputs[] = {
      {Element::f32},                      // Q, or Q, K and V side by side
      {Element::f32, Presence::optional},  // K
      {Element::f32, Presence::optional},  // V
      {Element::f32},                      // keys so far
      {Element::f32},                      // values so far
      {Element::i32},                      // the last position of each row, with the new tokens
      {Element::i32}};                     // the most positions that a row has filled, with the new tokens

  explicit CachedAttention(const Setup& setup)
      : heads_(setup.size("heads")), key_heads_(setup.size("key_heads")), scale_(setup.number("scale")) {
    if (heads_ % key_heads_ != 0) throw Failure("`heads` is no multiple of `key_heads`");
  }

  void run(Run& run) const {
    const Tensor query = run.input(0), key = run.input(1), value = run.input(2);
    const Tensor keys = run.input(3), values = run.input(4), last = run.input(5), total = run.input(6);
    kernels::CachedShape shape = shape_of(query.shape, keys.shape);
    if (values.shape.sizes != keys.shape.sizes)
      throw mismatch("the values' cache", values.shape, "the keys' shape");
    kernels::Cached cached{};
    cached.query = query.floats();
    take_new(shape, query, key, value, cached);
    if (total.shape.count() != 1) throw mismatch("the total length", total.shape, "[1]");
    const std::size_t before = shape.positions;
    shape.positions = std::max(before, positive(total, 0));
    const std::vector<std::size_t> past = past_of(shape, before, last, total);
    cached.past = past.data();
    cached.out =
        run.output(shaped({query.shape.sizes[0], query.shape.sizes[1], signed_(heads_ * shape.width)}));
    const Shape present =
        shaped({keys.shape.sizes[0], keys.shape.sizes[1], signed_(shape.positions), keys.shape.sizes[3]});
    cached.keys = carried(shape, keys, past, run.output(present, 1));
    cached.values = carried(shape, values, past, run.output(present, 2));
    kernels::attention_cached_f32(shape, cached, run.parallel());
  }

 private:
  static std::int64_t signed_(std::size_t size) { return static_cast<std::int64_t>(size); }

  static Shape shaped(std::initializer_list<std::int64_t> sizes) {
    Shape shape;
    shape.rank = sizes.size();
    std::copy(sizes.begin(), sizes.end(), shape.sizes.begin());
    return shape;
  }

  // Of a whole number at an index; below zero counts as zero.
  static std::size_t positive(const Tensor& numbers, std::size_t index) {
    return static_cast<std::size_t>(std::max(0, static_cast<const std::int32_t*>(numbers.data)[index]));
  }

  kernels::CachedShape shape_of(const Shape& query, const Shape& keys) const {
    if (query.rank != 3) throw mismatch("Q", query, "[rows, tokens, heads * width]");
    if (keys.rank != 4 || keys.sizes[0] != query.sizes[0] || keys.sizes[1] != signed_(key_heads_)) {
      throw mismatch("the keys' cache", keys, "[rows, key heads, positions, width]");
    }
    const auto size = [](std::int64_t number) { return static_cast<std::size_t>(number); };
    return {size(query.sizes[0]), heads_, key_heads_, size(query.sizes[1]), size(keys.sizes[2]),
            size(keys.sizes[3]),  scale_};
  }

  // K and V of the new tokens, in tensors of their own or behind the queries.
  void take_new(const kernels::CachedShape& shape, const Tensor& query, const Tensor& key,
                const Tensor& value, kernels::Cached& cached) const {
    const std::size_t of_query = heads_ * shape.width, of_key = key_heads_ * shape.width;
    const bool joined = key.data == nullptr;
    const std::size_t expected = joined ? of_query + 2 * of_key : of_query;
    if (query.shape.sizes[2] != signed_(expected))
      throw mismatch("Q", query.shape, std::to_string(expected).c_str());
    cached.query_step = expected;
    cached.key_step = joined ? expected : of_key;
    cached.key = joined ? cached.query + of_query : key.floats();
    cached.value = joined ? cached.key + of_key : value.floats();
    if (joined) return;
    const std::size_t count = shape.batch * shape.tokens * of_key;
    if (key.shape.count() != count) throw mismatch("K", key.shape, "the keys of Q's tokens");
    if (value.data == nullptr || value.shape.count() != count) throw mismatch("V", value.shape, "K's shape");
  }

  // Positions filled before; a first prompt, whose rows may be padded on the right, starts at none.
  static std::vector<std::size_t> past_of(const kernels::CachedShape& shape, std::size_t before,
                                          const Tensor& last, const Tensor& total) {
    if (last.shape.count() != shape.batch)
      throw mismatch("the last positions", last.shape, "one for each row");
    const bool first = positive(total, 0) == shape.tokens;
    std::vector<std::size_t> past(shape.batch, 0);
    for (std::size_t row = 0; row < shape.batch && !first; ++row) {
      const std::size_t filled = positive(last, row) + 1;
      const std::size_t most = std::min(shape.positions, before + shape.tokens);
      if (filled < shape.tokens || filled > most) {
        throw Failure("row " + std::to_string(row) + " ends at position " + std::to_string(filled - 1) +
                      ", expected " + std::to_string(shape.tokens - 1) + " to " + std::to_string(most - 1));
      }
      past[row] = filled - shape.tokens;
    }
    return past;
  }

  // The cache to go on with: the same memory as before, or a copy of what was filled of it, then zeros.
  float* carried(const kernels::CachedShape& shape, const Tensor& cache, const std::vector<std::size_t>& past,
                 float* present) const {
    if (present == cache.data) return present;
    const auto before = static_cast<std::size_t>(cache.shape.sizes[2]);
    for (std::size_t i = 0; i < shape.batch * key_heads_; ++i) {
      const std::size_t filled = past[i / key_heads_] * shape.width;
      float* const to = present + i * shape.positions * shape.width;
      std::copy_n(cache.floats() + i * before * shape.width, filled, to);
      std::fill(to + filled, to + shape.positions * shape.width, 0.0f);
    }
    return present;
  }

  std::size_t heads_, key_heads_;
  float scale_;
};

}  // namespace

const CustomOp* cached_attention_op() {
  return custom_op<CachedAttention>();
}

}  // namespace vlrt::ort
