// Attention against plain sums in double, at sizes that meet every tile, tail and way of lying in memory, and
// bit for bit against itself.
#if defined(VLRT_HAS_KERNELS)

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "attention.h"
#include "check.h"
#include "cpu.h"
#include "kernel_cases.h"
#include "vlrt/noise.h"

namespace vlrt::test {

namespace {

using kernels::Attended;
using kernels::AttentionShape;
using kernels::Parallel;
using kernels::Strides;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kUntouched = 12345.0f;

// A tensor [batch, heads, tokens, width] that lies as its layout says, with NaN or a mark between and behind
// its elements.
struct Lying {
  std::vector<float> floats;
  Strides at;

  Lying(const std::string& layout, std::size_t batch, std::size_t heads, std::size_t tokens,
        std::size_t width, float fill) {
    const auto b = static_cast<std::ptrdiff_t>(batch), h = static_cast<std::ptrdiff_t>(heads);
    const auto t = static_cast<std::ptrdiff_t>(tokens), w = static_cast<std::ptrdiff_t>(width);
    if (layout == "bhtd") at = {h * t * w, t * w, w, 1};
    if (layout == "bhdt") at = {h * t * w, t * w, 1, t};
    if (layout == "bthd") at = {h * t * w, w, h * w, 1};
    if (layout == "sparse") at = {h * t * w * 3, t * w * 3, w * 3, 3};
    floats.assign(static_cast<std::size_t>(b * at.batch) + 1, fill);
  }

  float& operator()(std::size_t batch, std::size_t head, std::size_t token, std::size_t lane) {
    const auto place =
        static_cast<std::ptrdiff_t>(batch) * at.batch + static_cast<std::ptrdiff_t>(head) * at.head +
        static_cast<std::ptrdiff_t>(token) * at.token + static_cast<std::ptrdiff_t>(lane) * at.lane;
    return floats[static_cast<std::size_t>(place)];
  }
};

enum class Masking { none, by_key, by_query };

struct Case {
  AttentionShape shape;
  Lying query, key, value, out;
  std::vector<float> mask;
  Strides mask_at{0, 0, 0, 0};

  Case(const AttentionShape& of, const std::string& outside, const std::string& keys,
       const std::string& values, TorchGenerator& generator)
      : shape(of),
        query(outside, of.batch, of.heads, of.queries, of.width, std::nanf("")),
        key(keys, of.batch, of.heads, of.keys, of.width, std::nanf("")),
        value(values, of.batch, of.heads, of.keys, of.value_width, std::nanf("")),
        out(outside, of.batch, of.heads, of.queries, of.value_width, kUntouched) {
    fill(query, of.queries, of.width, generator);
    fill(key, of.keys, of.width, generator);
    fill(value, of.keys, of.value_width, generator);
  }

  void fill(Lying& tensor, std::size_t tokens, std::size_t width, TorchGenerator& generator) {
    for (std::size_t b = 0; b < shape.batch; ++b)
      for (std::size_t h = 0; h < shape.heads; ++h)
        for (std::size_t t = 0; t < tokens; ++t)
          for (std::size_t w = 0; w < width; ++w)
            tensor(b, h, t, w) = static_cast<float>(generator.random() % 4001) / 1000.0f - 2.0f;
  }

  // By key: of the second row of a batch the latter half is padding. By query: causal, aligned to the right.
  void hide(Masking masking) {
    if (masking == Masking::by_key) {
      mask_at = {static_cast<std::ptrdiff_t>(shape.keys), 0, 0, 1};
      mask.assign(shape.batch * shape.keys, 0.25f);
      std::fill(mask.end() - static_cast<std::ptrdiff_t>(shape.keys / 2), mask.end(), -kInfinity);
    } else if (masking == Masking::by_query) {
      mask_at = {0, 0, static_cast<std::ptrdiff_t>(shape.keys), 1};
      mask.assign(shape.queries * shape.keys, 0.0f);
      for (std::size_t q = 0; q < shape.queries; ++q)
        for (std::size_t k = 0; k < shape.keys; ++k)
          if (k + shape.queries > q + shape.keys)
            mask[q * shape.keys + k] = std::numeric_limits<float>::lowest();
    }
  }

  double masked(std::size_t b, std::size_t q, std::size_t k) const {
    if (mask.empty()) return 0.0;
    const auto place = static_cast<std::ptrdiff_t>(b) * mask_at.batch +
                       static_cast<std::ptrdiff_t>(q) * mask_at.token + static_cast<std::ptrdiff_t>(k);
    return std::max(static_cast<double>(mask[static_cast<std::size_t>(place)]), -1e30);
  }

  void run(const Parallel& parallel) {
    kernels::attention_f32(
        shape,
        {query.floats.data(), key.floats.data(), value.floats.data(), mask.empty() ? nullptr : mask.data(),
         out.floats.data(), query.at, key.at, value.at, mask_at, out.at},
        parallel);
  }

  std::vector<double> expected(std::size_t b, std::size_t h, std::size_t q) {
    std::vector<double> weights(shape.keys), result(shape.value_width);
    double greatest = -1e300, total = 0.0;
    for (std::size_t k = 0; k < shape.keys; ++k) {
      double product = 0.0;
      for (std::size_t w = 0; w < shape.width; ++w)
        product += static_cast<double>(query(b, h, q, w)) * static_cast<double>(key(b, h, k, w));
      const double hidden = masked(b, q, k);
      // What a finite mask leaves of a score in float32: nothing.
      weights[k] = hidden <= -1e30 ? hidden : product * static_cast<double>(shape.scale) + hidden;
      greatest = std::max(greatest, weights[k]);
    }
    for (double& weight : weights) total += weight = std::exp(weight - greatest);
    for (std::size_t w = 0; w < shape.value_width; ++w)
      for (std::size_t k = 0; k < shape.keys; ++k)
        result[w] += weights[k] / total * static_cast<double>(value(b, h, k, w));
    return result;
  }

  bool agrees() {
    run(kernels::serial());
    std::size_t written = 0;
    for (std::size_t b = 0; b < shape.batch; ++b)
      for (std::size_t h = 0; h < shape.heads; ++h)
        for (std::size_t q = 0; q < shape.queries; ++q) {
          const std::vector<double> row = expected(b, h, q);
          for (std::size_t w = 0; w < shape.value_width; ++w, ++written)
            if (!near(static_cast<double>(out(b, h, q, w)), row[w], 5e-6)) return false;
        }
    const auto untouched = std::count(out.floats.begin(), out.floats.end(), kUntouched);
    return static_cast<std::size_t>(untouched) == out.floats.size() - written;
  }
};

AttentionShape sized(std::size_t queries, std::size_t keys, std::size_t width, std::size_t value_width) {
  return {2, 3, queries, keys, width, value_width, 0.1f};
}

}  // namespace

TEST(attention_agrees_with_sums_in_double) {
  if (kernels::level() < kernels::Level::avx512) return;
  TorchGenerator generator(21);
  const std::string layouts[] = {"bhtd", "bhdt", "bthd", "sparse"};
  const Masking maskings[] = {Masking::none, Masking::by_key, Masking::by_query};
  const std::size_t widths[] = {1, 8, 20, 40, 131};
  std::size_t next = 0;
  for (const std::size_t queries : {1, 2, 3, 4, 5, 6, 7, 12, 13, 31, 50, 66})
    for (const std::size_t keys : {1, 3, 19, 150}) {
      for (const Masking masking : maskings) {
        const std::size_t i = next++;
        Case one(sized(queries, keys, widths[i % 5], widths[i / 5 % 5]), layouts[i % 4], layouts[i / 4 % 4],
                 layouts[i / 2 % 4], generator);
        one.hide(masking);
        CHECK(one.agrees());
      }
    }
}

TEST(attention_reads_a_decoders_memory_in_place) {
  if (kernels::level() < kernels::Level::avx512) return;
  TorchGenerator generator(22);
  for (const std::string values : {"bhdt", "bhtd"})
    for (std::size_t queries = 1; queries <= 8; ++queries) {
      Case one(sized(queries, 37, 24, queries * 20), "bhdt", "bhtd", values, generator);
      one.hide(queries % 2 == 0 ? Masking::by_key : Masking::none);
      CHECK(one.agrees());
    }
}

TEST(attention_of_a_query_that_sees_nothing_is_the_mean) {
  if (kernels::level() < kernels::Level::avx512) return;
  TorchGenerator generator(23);
  for (const std::size_t queries : {2, 20}) {
    Case one(sized(queries, 9, 4, 5), "bthd", "bthd", "bthd", generator);
    one.hide(Masking::by_key);
    std::fill(one.mask.begin(), one.mask.end(), -kInfinity);
    one.run(kernels::serial());
    double mean = 0.0;
    for (std::size_t key = 0; key < 9; ++key) mean += static_cast<double>(one.value(1, 2, key, 3)) / 9.0;
    CHECK(near(static_cast<double>(one.out(1, 2, queries - 1, 3)), mean, 1e-6));
  }
}

TEST(attention_gives_a_query_the_same_bits_in_any_company_and_on_any_thread) {
  if (kernels::level() < kernels::Level::avx512) return;
  TorchGenerator generator(24);
  for (const std::size_t queries : {12, 70}) {
    Case whole(sized(queries, 300, 24, 24), "bthd", "bhtd", "bhtd", generator);
    whole.run(kernels::serial());
    const std::vector<float> once = whole.out.floats;
    whole.run(Parallel(backwards, nullptr, 2));
    CHECK(whole.out.floats == once);
    Case part = whole;
    part.shape.queries = queries == 12 ? 1 : 17;
    part.run(kernels::serial());
    for (std::size_t q = 0; q < part.shape.queries; ++q)
      for (std::size_t lane = 0; lane < 24; ++lane)
        CHECK(part.out(1, 2, q, lane) == whole.out(1, 2, q, lane));
  }
}

TEST(attention_shares_a_memory_between_rows_and_heads) {
  if (kernels::level() < kernels::Level::avx512) return;
  TorchGenerator generator(25);
  for (const std::size_t queries : {3, 40}) {
    Case one(sized(queries, 30, 8, 8), "bhtd", "bhtd", "bhtd", generator);
    one.key.at.batch = one.key.at.head = one.value.at.batch = one.value.at.head = 0;
    CHECK(one.agrees());
  }
}

TEST(attention_lets_nan_through) {
  if (kernels::level() < kernels::Level::avx512) return;
  TorchGenerator generator(26);
  for (const std::size_t queries : {3, 40}) {
    Case one(sized(queries, 30, 8, 8), "bhtd", "bhtd", "bhtd", generator);
    one.query(0, 1, 2, 5) = std::nanf("");
    one.run(kernels::serial());
    CHECK(std::isnan(one.out(0, 1, 2, 0)));
    CHECK(!std::isnan(one.out(0, 1, 1, 0)));
  }
}

}  // namespace vlrt::test

#endif
