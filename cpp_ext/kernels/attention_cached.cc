#include "attention_cached.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "attention.h"
#include "attention_few.h"
#include "attention_threads.h"
#include "scratch.h"

namespace vlrt::kernels {

namespace {

thread_local Scratch scratch;

std::ptrdiff_t step(std::size_t floats) {
  return static_cast<std::ptrdiff_t>(floats);
}

// The cache of one row's head, and what is new of it.
class CachedHead {
 public:
  CachedHead(const CachedShape& shape, const Cached& cached, std::size_t row, std::size_t head)
      : shape_(shape), cached_(cached), row_(row), head_(head), group_(shape.heads / shape.key_heads) {
    const std::size_t place = (row * shape.key_heads + head) * shape.positions * shape.width;
    keys_ = cached.keys + place;
    values_ = cached.values + place;
  }

  void append() const {
    for (std::size_t token = 0; token < shape_.tokens; ++token) {
      const std::size_t from = (row_ * shape_.tokens + token) * cached_.key_step + head_ * shape_.width;
      const std::size_t to = (cached_.past[row_] + token) * shape_.width;
      std::copy_n(cached_.key + from, shape_.width, keys_ + to);
      std::copy_n(cached_.value + from, shape_.width, values_ + to);
    }
  }

  // Token by token: each sees one position more. The heads that share the cache are the queries.
  void attend_each(float* room) const {
    for (std::size_t token = 0; token < shape_.tokens; ++token) {
      Attended attended = of(token);
      attended.query_at.token = attended.out_at.token = step(shape_.width);
      attend_few_avx512(sized(1, group_, cached_.past[row_] + token + 1), attended, 0, 0, room);
    }
  }

  // All tokens at once, each behind a mask [tokens, keys].
  void attend_all(const std::vector<float>& mask, const Parallel& parallel) const {
    const std::size_t keys = cached_.past[row_] + shape_.tokens;
    Attended attended = of(0);
    attended.mask = mask.data();
    attended.mask_at = {0, 0, step(keys), 1};
    attended.query_at.token = step(cached_.query_step);
    attended.out_at.token = step(shape_.heads * shape_.width);
    attended.query_at.head = attended.out_at.head = step(shape_.width);
    attention_f32(sized(group_, shape_.tokens, keys), attended, parallel);
  }

  std::size_t scratch_needed() const { return few_scratch(sized(1, group_, shape_.positions)); }

 private:
  AttentionShape sized(std::size_t heads, std::size_t queries, std::size_t keys) const {
    return {1, heads, queries, keys, shape_.width, shape_.width, shape_.scale};
  }

  Attended of(std::size_t token) const {
    const std::size_t place = row_ * shape_.tokens + token, lane = head_ * group_ * shape_.width;
    Attended attended{};
    attended.query = cached_.query + place * cached_.query_step + lane;
    attended.out = cached_.out + place * shape_.heads * shape_.width + lane;
    attended.key = keys_;
    attended.value = values_;
    attended.query_at.lane = attended.out_at.lane = 1;
    attended.key_at = attended.value_at = {0, 0, step(shape_.width), 1};
    return attended;
  }

  const CachedShape& shape_;
  const Cached& cached_;
  std::size_t row_, head_, group_;
  float *keys_, *values_;
};

std::vector<float> causal(std::size_t tokens, std::size_t past) {
  const std::size_t keys = past + tokens;
  std::vector<float> mask(tokens * keys, 0.0f);
  for (std::size_t token = 0; token < tokens; ++token) {
    const auto row = mask.begin() + step(token * keys);
    std::fill(row + step(past + token + 1), row + step(keys), std::numeric_limits<float>::lowest());
  }
  return mask;
}

void attend_long(const CachedShape& shape, const Cached& cached, const Parallel& parallel) {
  for (std::size_t row = 0; row < shape.batch; ++row) {
    const std::vector<float> mask = causal(shape.tokens, cached.past[row]);
    for (std::size_t head = 0; head < shape.key_heads; ++head) {
      const CachedHead one(shape, cached, row, head);
      one.append();
      one.attend_all(mask, parallel);
    }
  }
}

}  // namespace

void attention_cached_f32(const CachedShape& shape, const Cached& cached, const Parallel& parallel) {
  if (shape.batch * shape.tokens == 0) return;
  if (shape.tokens > kFewQueries) return attend_long(shape, cached, parallel);
  const std::size_t units = shape.batch * shape.key_heads;
  std::size_t seen = 0;
  for (std::size_t row = 0; row < shape.batch; ++row) seen += cached.past[row] + shape.tokens;
  const std::size_t tasks = tasks_for(units, 2 * seen * shape.key_heads * shape.width);
  run_all(parallel, tasks, [&](std::size_t task) {
    for (std::size_t i = task * units / tasks; i < (task + 1) * units / tasks; ++i) {
      const CachedHead one(shape, cached, i / shape.key_heads, i % shape.key_heads);
      one.append();
      one.attend_each(scratch.room(one.scratch_needed()));
    }
  });
}

}  // namespace vlrt::kernels
