// Attention to a cache: token by token and all at once it is attention to what each token may see.
#if defined(VLRT_HAS_KERNELS)

#include <algorithm>
#include <vector>

#include "attention.h"
#include "attention_cached.h"
#include "check.h"
#include "cpu.h"
#include "vlrt/noise.h"

namespace vlrt::test {

namespace {

using kernels::CachedShape;

constexpr float kEmpty = 777.0f;

std::vector<float> random_floats(TorchGenerator& generator, std::size_t count) {
  std::vector<float> values(count);
  for (auto& value : values) value = static_cast<float>(generator.random() % 2001) / 1000.0f - 1.0f;
  return values;
}

// Rows whose caches are filled as far as `past` says; queries, keys and values of the new tokens lie side by
// side.
struct Step {
  CachedShape shape;
  std::vector<std::size_t> past;
  std::size_t step;
  std::vector<float> joined, keys, values, out;

  Step(const CachedShape& of, std::vector<std::size_t> filled, TorchGenerator& generator)
      : shape(of),
        past(std::move(filled)),
        step((of.heads + 2 * of.key_heads) * of.width),
        joined(random_floats(generator, of.batch * of.tokens * step)),
        keys(random_floats(generator, of.batch * of.key_heads * of.positions * of.width)),
        values(random_floats(generator, keys.size())),
        out(of.batch * of.tokens * of.heads * of.width, kEmpty) {}

  const float* part(std::size_t heads_before) const { return joined.data() + heads_before * shape.width; }

  void run() {
    kernels::attention_cached_f32(shape,
                                  {part(0), part(shape.heads), part(shape.heads + shape.key_heads), step,
                                   step, past.data(), keys.data(), values.data(), out.data()},
                                  kernels::serial());
  }

  // What was put down for a token, which must lie in the cache.
  bool holds(const std::vector<float>& cache, std::size_t heads_before) const {
    for (std::size_t row = 0; row < shape.batch; ++row)
      for (std::size_t head = 0; head < shape.key_heads; ++head)
        for (std::size_t token = 0; token < shape.tokens; ++token) {
          const float* const from = part(heads_before + head) + (row * shape.tokens + token) * step;
          const std::size_t place =
              ((row * shape.key_heads + head) * shape.positions + past[row] + token) * shape.width;
          if (!std::equal(from, from + shape.width, cache.begin() + static_cast<std::ptrdiff_t>(place)))
            return false;
        }
    return true;
  }

  // One query alone, over the cache as it is now.
  std::vector<float> alone(std::size_t row, std::size_t head, std::size_t token) const {
    std::vector<float> result(shape.width);
    const std::size_t place =
        (row * shape.key_heads + head / (shape.heads / shape.key_heads)) * shape.positions * shape.width;
    kernels::Attended attended{};
    attended.query = part(head) + (row * shape.tokens + token) * step;
    attended.key = keys.data() + place;
    attended.value = values.data() + place;
    attended.out = result.data();
    attended.query_at.lane = attended.out_at.lane = 1;
    attended.key_at = attended.value_at = {0, 0, static_cast<std::ptrdiff_t>(shape.width), 1};
    kernels::attention_f32({1, 1, 1, past[row] + token + 1, shape.width, shape.width, shape.scale}, attended,
                           kernels::serial());
    return result;
  }

  bool agrees() const {
    for (std::size_t row = 0; row < shape.batch; ++row)
      for (std::size_t token = 0; token < shape.tokens; ++token)
        for (std::size_t head = 0; head < shape.heads; ++head) {
          const std::vector<float> expected = alone(row, head, token);
          const std::size_t place = ((row * shape.tokens + token) * shape.heads + head) * shape.width;
          for (std::size_t lane = 0; lane < shape.width; ++lane)
            if (!near(static_cast<double>(out[place + lane]), static_cast<double>(expected[lane]), 1e-6))
              return false;
        }
    return true;
  }
};

}  // namespace

TEST(attention_to_a_cache_lets_each_token_see_up_to_itself) {
  if (kernels::level() < kernels::Level::avx512) return;
  TorchGenerator generator(31);
  for (const std::size_t tokens : {1, 2, 5, 12, 13, 40})
    for (const std::size_t key_heads : {1, 2, 4}) {
      Step one({3, 4, key_heads, tokens, 60, 20, 0.4f}, {0, 7, 60 - tokens}, generator);
      const std::vector<float> before = one.keys;
      one.run();
      CHECK(one.holds(one.keys, 4));
      CHECK(one.holds(one.values, 4 + key_heads));
      CHECK(one.agrees());
      const auto changed = std::mismatch(before.begin(), before.end(), one.keys.begin()).first;
      CHECK(changed == before.begin());  // the first row was empty
      CHECK(std::equal(before.end() - 20, before.end(), one.keys.end() - 20) == false);
    }
}

}  // namespace vlrt::test

#endif
