#include <algorithm>
#include <iterator>

#include "attention_exp_avx512.h"
#include "attention_few.h"

namespace vlrt::kernels {

namespace {

// Queries that are answered in one pass over the memory: with four keys at once that makes 24 sums in
// registers.
constexpr std::size_t kPassQueries = 6;

// One place alone is read at two thirds of the speed at which a core reads four.
constexpr std::size_t kStreams = 4;

// Vectors of a row of values that are summed at once.
constexpr std::size_t kVectors = 4;

constexpr std::size_t whole_vectors(std::size_t count) {
  return (count + kLanes - 1) / kLanes * kLanes;
}

// A matrix whose rows are vectors.
struct Rows {
  const float* data;
  std::ptrdiff_t step;
  std::size_t count, length;

  const float* operator[](std::size_t row) const { return data + static_cast<std::ptrdiff_t>(row) * step; }
};

// Sums of four vectors' lanes.
VLRT_VECTOR __m128 sum_lanes_of_four(const __m512 (&x)[kStreams]) {
  const __m512 low = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const __m512 high = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xEE));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

template <std::size_t Q>
VLRT_VECTOR void add_products(const float* const (&from)[kStreams], std::size_t lane, __mmask16 lanes,
                              const float* queries, std::size_t query_step, __m512 (&sums)[Q][kStreams]) {
  __m512 memory[kStreams];
#pragma GCC unroll 4
  for (std::size_t s = 0; s < kStreams; ++s) memory[s] = _mm512_maskz_loadu_ps(lanes, from[s] + lane);
#pragma GCC unroll 6
  for (std::size_t q = 0; q < Q; ++q) {
    const __m512 query = _mm512_loadu_ps(queries + q * query_step);
#pragma GCC unroll 4
    for (std::size_t s = 0; s < kStreams; ++s) sums[q][s] = _mm512_fmadd_ps(memory[s], query, sums[q][s]);
  }
}

// products[q][row] = rows[row] . queries[q], four rows at once, a quarter of the matrix apart. Quarters
// overlap where the count is no multiple of four: what they share is computed twice, the same way.
template <std::size_t Q>
void multiply_rows(const Rows& rows, const float* queries, std::size_t query_step, float* products,
                   std::size_t product_step) {
  const std::size_t quarter = (rows.count + kStreams - 1) / kStreams;
  std::size_t first[kStreams];
  for (std::size_t s = 0; s < kStreams; ++s) first[s] = std::min(s * quarter, rows.count - quarter);
  const std::size_t whole = rows.length / kLanes * kLanes;
  const __mmask16 tail = first_lanes(rows.length - whole);
  for (std::size_t row = 0; row < quarter; ++row) {
    const float* const from[kStreams] = {rows[first[0] + row], rows[first[1] + row], rows[first[2] + row],
                                         rows[first[3] + row]};
    __m512 sums[Q][kStreams];
#pragma GCC unroll 6
    for (std::size_t q = 0; q < Q; ++q) {
#pragma GCC unroll 4
      for (std::size_t s = 0; s < kStreams; ++s) sums[q][s] = _mm512_setzero_ps();
    }
    for (std::size_t lane = 0; lane < whole; lane += kLanes) {
      add_products<Q>(from, lane, 0xFFFF, queries + lane, query_step, sums);
    }
    if (tail != 0) add_products<Q>(from, whole, tail, queries + whole, query_step, sums);
#pragma GCC unroll 6
    for (std::size_t q = 0; q < Q; ++q) {
      alignas(16) float four[kStreams];
      _mm_store_ps(four, sum_lanes_of_four(sums[q]));
      for (std::size_t s = 0; s < kStreams; ++s) products[q * product_step + first[s] + row] = four[s];
    }
  }
}

// Adds weights[q][row] * rows[row], kVectors vectors from `lane` on, to sums.
template <std::size_t Q>
VLRT_VECTOR void add_row(const Rows& rows, std::size_t row, std::size_t lane, const float* weights,
                         std::size_t step, __m512 (&sums)[Q][kVectors]) {
  const float* const from = rows[row] + lane;
  const std::size_t left = rows.length - lane;
  __m512 memory[kVectors];
#pragma GCC unroll 4
  for (std::size_t v = 0; v < kVectors; ++v) {
    memory[v] = left > v * kLanes ? load_first(from + v * kLanes, left - v * kLanes) : _mm512_setzero_ps();
  }
#pragma GCC unroll 6
  for (std::size_t q = 0; q < Q; ++q) {
    const __m512 weight = _mm512_set1_ps(weights[q * step + row]);
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVectors; ++v) sums[q][v] = _mm512_fmadd_ps(weight, memory[v], sums[q][v]);
  }
}

// products[q][lane] = sum over rows of weights[q][row] * rows[row][lane], for kVectors vectors from `lane`
// on.
template <std::size_t Q>
void weigh_rows(const Rows& rows, std::size_t lane, const float* weights, std::size_t step, float* products,
                std::size_t product_step) {
  __m512 sums[Q][kVectors];
#pragma GCC unroll 6
  for (std::size_t q = 0; q < Q; ++q) {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVectors; ++v) sums[q][v] = _mm512_setzero_ps();
  }
  const std::size_t quarter = rows.count / kStreams;
  for (std::size_t row = 0; row < quarter; ++row) {
#pragma GCC unroll 1
    for (std::size_t s = 0; s < kStreams; ++s) add_row<Q>(rows, s * quarter + row, lane, weights, step, sums);
  }
  for (std::size_t row = kStreams * quarter; row < rows.count; ++row) {
    add_row<Q>(rows, row, lane, weights, step, sums);
  }
#pragma GCC unroll 6
  for (std::size_t q = 0; q < Q; ++q) {
    float* const to = products + q * product_step + lane;
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVectors; ++v) _mm512_storeu_ps(to + v * kLanes, sums[q][v]);
  }
}

template <std::size_t Q>
void weigh_all_rows(const Rows& rows, const float* weights, std::size_t step, float* products,
                    std::size_t product_step) {
  for (std::size_t lane = 0; lane < rows.length; lane += kVectors * kLanes) {
    weigh_rows<Q>(rows, lane, weights, step, products, product_step);
  }
}

// The passes there are; in between, queries of zeros fill one up.
struct Kernels {
  using Multiply = void (*)(const Rows&, const float* left, std::size_t left_step, float* products,
                            std::size_t product_step);
  std::size_t queries;
  Multiply multiply, weigh;
};

constexpr Kernels kKernels[] = {{1, multiply_rows<1>, weigh_all_rows<1>},
                                {2, multiply_rows<2>, weigh_all_rows<2>},
                                {4, multiply_rows<4>, weigh_all_rows<4>},
                                {5, multiply_rows<5>, weigh_all_rows<5>},
                                {kPassQueries, multiply_rows<kPassQueries>, weigh_all_rows<kPassQueries>}};

void add_mask(const float* mask, std::ptrdiff_t step, std::size_t keys, float* scores) {
  const __m512 unit = _mm512_set1_ps(kLog2E);
  for (std::size_t key = 0; key < keys; key += kLanes) {
    const std::size_t count = std::min(kLanes, keys - key);
    alignas(64) float some[kLanes] = {};
    if (step != 1) {
      for (std::size_t i = 0; i < count; ++i) some[i] = mask[static_cast<std::ptrdiff_t>(key + i) * step];
    }
    const __m512 hidden = step == 1 ? load_first(mask + key, count) : _mm512_load_ps(some);
    const __m512 score = _mm512_fmadd_ps(hidden, unit, load_first(scores + key, count));
    store_first(scores + key, count, bounded_score(score));
  }
}

// Scores become weights, with zeros up to a whole vector. Returns one over their sum.
float weigh_scores(float* scores, std::size_t keys) {
  __m512 greatest = _mm512_set1_ps(kLowestScore);
  for (std::size_t key = 0; key < keys; key += kLanes) {
    greatest = _mm512_mask_max_ps(greatest, first_lanes(keys - key), greatest, _mm512_loadu_ps(scores + key));
  }
  greatest = _mm512_set1_ps(max_lanes(greatest));
  __m512 total = _mm512_setzero_ps();
  for (std::size_t key = 0; key < keys; key += kLanes) {
    const __m512 score = _mm512_sub_ps(_mm512_loadu_ps(scores + key), greatest);
    const __m512 weight = _mm512_maskz_mov_ps(first_lanes(keys - key), exp2_ps(score));
    _mm512_storeu_ps(scores + key, weight);
    total = _mm512_add_ps(total, weight);
  }
  return 1.0f / sum_lanes(total);
}

struct Head {
  const AttentionShape& shape;
  const Attended& attended;
  const float *query, *key, *value, *mask;
  float* out;
};

const float* of_head(const float* base, const Strides& steps, std::size_t batch, std::size_t head) {
  return base + static_cast<std::ptrdiff_t>(batch) * steps.batch +
         static_cast<std::ptrdiff_t>(head) * steps.head;
}

// `count` queries from `first` on, over the whole memory.
class Pass {
 public:
  Pass(const Head& head, std::size_t first, std::size_t count, float* scratch)
      : head_(head),
        kernels_(*std::find_if(std::begin(kKernels), std::end(kKernels),
                               [&](const Kernels& some) { return some.queries >= count; })),
        first_(first),
        count_(count),
        query_step_(whole_vectors(head.shape.width)),
        score_step_(whole_vectors(head.shape.keys)),
        sum_step_(whole_vectors(head.shape.value_width) + kVectors * kLanes),
        query_(scratch),
        scores_(query_ + kernels_.queries * query_step_),
        sums_(scores_ + kernels_.queries * score_step_) {}

  void run() {
    const AttentionShape& shape = head_.shape;
    const Strides& steps = head_.attended.value_at;
    take_queries();
    kernels_.multiply({head_.key, head_.attended.key_at.token, shape.keys, shape.width}, query_, query_step_,
                      scores_, score_step_);
    for (std::size_t q = 0; q < count_; ++q) soften(q);
    if (steps.lane == 1) {
      kernels_.weigh({head_.value, steps.token, shape.keys, shape.value_width}, scores_, score_step_, sums_,
                     sum_step_);
    } else {
      kernels_.multiply({head_.value, steps.lane, shape.value_width, shape.keys}, scores_, score_step_, sums_,
                        sum_step_);
    }
    give();
  }

 private:
  void take_queries() const {
    const Strides& steps = head_.attended.query_at;
    const float factor = head_.shape.scale * kLog2E;
    std::fill_n(query_, kernels_.queries * query_step_, 0.0f);
    for (std::size_t q = 0; q < count_; ++q) {
      const float* from = head_.query + static_cast<std::ptrdiff_t>(first_ + q) * steps.token;
      float* const to = query_ + q * query_step_;
      for (std::size_t lane = 0; lane < head_.shape.width; ++lane, from += steps.lane)
        to[lane] = factor * *from;
    }
  }

  void soften(std::size_t q) {
    float* const scores = scores_ + q * score_step_;
    if (head_.mask != nullptr) {
      const Strides& steps = head_.attended.mask_at;
      const float* const mask = head_.mask + static_cast<std::ptrdiff_t>(first_ + q) * steps.token;
      add_mask(mask, steps.lane, head_.shape.keys, scores);
    }
    shares_[q] = weigh_scores(scores, head_.shape.keys);
  }

  void give() const {
    const Strides& steps = head_.attended.out_at;
    for (std::size_t q = 0; q < count_; ++q) {
      float* to = head_.out + static_cast<std::ptrdiff_t>(first_ + q) * steps.token;
      const float* const from = sums_ + q * sum_step_;
      for (std::size_t lane = 0; lane < head_.shape.value_width; ++lane, to += steps.lane) {
        *to = from[lane] * shares_[q];
      }
    }
  }

  const Head& head_;
  const Kernels& kernels_;
  std::size_t first_, count_, query_step_, score_step_, sum_step_;
  float *query_, *scores_, *sums_;
  float shares_[kPassQueries];
};

}  // namespace

bool reads_in_place(const Attended& attended) {
  return attended.key_at.lane == 1 && (attended.value_at.lane == 1 || attended.value_at.token == 1);
}

std::size_t few_scratch(const AttentionShape& shape) {
  return kPassQueries * (whole_vectors(shape.width) + whole_vectors(shape.keys) +
                         whole_vectors(shape.value_width) + kVectors * kLanes);
}

void attend_few_avx512(const AttentionShape& shape, const Attended& attended, std::size_t batch,
                       std::size_t head, float* scratch) {
  const Head one{shape,
                 attended,
                 of_head(attended.query, attended.query_at, batch, head),
                 of_head(attended.key, attended.key_at, batch, head),
                 of_head(attended.value, attended.value_at, batch, head),
                 attended.mask == nullptr ? nullptr : of_head(attended.mask, attended.mask_at, batch, head),
                 const_cast<float*>(of_head(attended.out, attended.out_at, batch, head))};
  const std::size_t passes = (shape.queries + kPassQueries - 1) / kPassQueries;
  for (std::size_t pass = 0, first = 0; pass < passes; ++pass) {
    const std::size_t count = (shape.queries - first) / (passes - pass);
    Pass(one, first, count, scratch).run();
    first += count;
  }
}

}  // namespace vlrt::kernels
