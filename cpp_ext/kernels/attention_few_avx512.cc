#include <algorithm>

#include "attention_exp_avx512.h"
#include "attention_few.h"

namespace vlrt::kernels {

namespace {

// Queries that are answered in one pass over the memory: with four keys at once that makes 24 sums in
// registers.
constexpr std::size_t kPassQueries = 6;

// One place alone is read at two thirds of the speed at which a core reads four.
constexpr std::size_t kStreams = 4;

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
template <std::size_t Q, class Take>
VLRT_VECTOR void multiply_rows(const Rows& rows, const float* queries, std::size_t query_step,
                               const Take& take) {
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
#pragma GCC unroll 4
      for (std::size_t s = 0; s < kStreams; ++s) take(q, first[s] + row, four[s]);
    }
  }
}

// Adds weights[q][row] * rows[row], lanes [16 V from `lane`), to sums.
template <std::size_t Q, std::size_t V>
VLRT_VECTOR void add_row(const Rows& rows, std::size_t row, std::size_t lane, const float* weights,
                         std::size_t step, __m512 (&sums)[Q][V]) {
  const float* const from = rows[row] + lane;
  const std::size_t left = rows.length - lane;
  __m512 memory[V];
#pragma GCC unroll 8
  for (std::size_t v = 0; v < V; ++v) {
    memory[v] = left >= V * kLanes  ? _mm512_loadu_ps(from + v * kLanes)
                : left > v * kLanes ? load_first(from + v * kLanes, left - v * kLanes)
                                    : _mm512_setzero_ps();
  }
#pragma GCC unroll 6
  for (std::size_t q = 0; q < Q; ++q) {
    const __m512 weight = _mm512_set1_ps(weights[q * step + row]);
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) sums[q][v] = _mm512_fmadd_ps(weight, memory[v], sums[q][v]);
  }
}

// sums[q][lane] over all rows, for 16 V lanes.
template <std::size_t Q, std::size_t V>
void weigh_rows(const Rows& rows, std::size_t lane, const float* weights, std::size_t step, float* target,
                std::size_t target_step) {
  __m512 sums[Q][V];
#pragma GCC unroll 6
  for (std::size_t q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v) sums[q][v] = _mm512_setzero_ps();
  }
  const std::size_t quarter = rows.count / kStreams;
  for (std::size_t row = 0; row < quarter; ++row) {
#pragma GCC unroll 4
    for (std::size_t s = 0; s < kStreams; ++s)
      add_row<Q, V>(rows, s * quarter + row, lane, weights, step, sums);
  }
  for (std::size_t row = kStreams * quarter; row < rows.count; ++row) {
    add_row<Q, V>(rows, row, lane, weights, step, sums);
  }
#pragma GCC unroll 6
  for (std::size_t q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (std::size_t v = 0; v < V; ++v)
      _mm512_storeu_ps(target + q * target_step + lane + v * kLanes, sums[q][v]);
  }
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

// Adds the mask to a query's scores, makes them weights, with zeros up to a whole vector, and returns one
// over their sum.
float weights_of(const Head& head, std::size_t query, float* scores) {
  const std::size_t keys = head.shape.keys;
  if (head.mask != nullptr) {
    const Strides& steps = head.attended.mask_at;
    const float* mask = head.mask + static_cast<std::ptrdiff_t>(query) * steps.token;
    for (std::size_t key = 0; key < keys; ++key, mask += steps.lane) {
      const float score = scores[key] + *mask * kLog2E;
      scores[key] = score < kLowestScore ? kLowestScore : score;
    }
  }
  __m512 greatest = _mm512_set1_ps(kLowestScore);
  for (std::size_t key = 0; key < keys; key += kLanes) {
    const __mmask16 lanes = first_lanes(keys - key);
    greatest = _mm512_mask_max_ps(greatest, lanes, greatest, _mm512_loadu_ps(scores + key));
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

// Q queries from `first` on, over the whole memory.
template <std::size_t Q>
class Pass {
 public:
  Pass(const Head& head, std::size_t first, float* scratch)
      : head_(head),
        first_(first),
        query_step_(whole_vectors(head.shape.width)),
        score_step_(whole_vectors(head.shape.keys)),
        query_(scratch),
        scores_(query_ + Q * query_step_),
        sums_(scores_ + Q * score_step_) {}

  void run() {
    const AttentionShape& shape = head_.shape;
    take_queries();
    const Rows keys{head_.key, head_.attended.key_at.token, shape.keys, shape.width};
    multiply_rows<Q>(keys, query_, query_step_, [this](std::size_t q, std::size_t key, float score) {
      scores_[q * score_step_ + key] = score;
    });
    for (std::size_t q = 0; q < Q; ++q) shares_[q] = weights_of(head_, first_ + q, scores_ + q * score_step_);
    if (head_.attended.value_at.lane == 1) {
      weigh_tokens({head_.value, head_.attended.value_at.token, shape.keys, shape.value_width});
    } else {
      weigh_lanes({head_.value, head_.attended.value_at.lane, shape.value_width, shape.keys});
    }
  }

 private:
  void take_queries() const {
    const Strides& steps = head_.attended.query_at;
    const float factor = head_.shape.scale * kLog2E;
    for (std::size_t q = 0; q < Q; ++q) {
      const float* from = head_.query + static_cast<std::ptrdiff_t>(first_ + q) * steps.token;
      float* const to = query_ + q * query_step_;
      for (std::size_t lane = 0; lane < head_.shape.width; ++lane, from += steps.lane)
        to[lane] = factor * *from;
      std::fill(to + head_.shape.width, to + query_step_, 0.0f);
    }
  }

  float& out(std::size_t q, std::size_t lane) const {
    const Strides& steps = head_.attended.out_at;
    return head_.out[static_cast<std::ptrdiff_t>(first_ + q) * steps.token +
                     static_cast<std::ptrdiff_t>(lane) * steps.lane];
  }

  // Values whose keys follow one another.
  void weigh_lanes(const Rows& values) const {
    multiply_rows<Q>(values, scores_, score_step_,
                     [this](std::size_t q, std::size_t lane, float sum) { out(q, lane) = sum * shares_[q]; });
  }

  // Values whose lanes follow one another.
  void weigh_tokens(const Rows& values) const {
    constexpr std::size_t kWide = 24 / Q >= 8 ? 8 : 4;
    const std::size_t step = rounded_width();
    std::size_t lane = 0;
    for (; lane < values.length; lane += kWide * kLanes) {
      const std::size_t vectors = (values.length - lane + kLanes - 1) / kLanes;
      if (vectors <= kWide / 4) {
        weigh_rows<Q, kWide / 4>(values, lane, scores_, score_step_, sums_, step);
      } else if (vectors <= kWide / 2) {
        weigh_rows<Q, kWide / 2>(values, lane, scores_, score_step_, sums_, step);
      } else {
        weigh_rows<Q, kWide>(values, lane, scores_, score_step_, sums_, step);
      }
    }
    for (std::size_t q = 0; q < Q; ++q) {
      for (lane = 0; lane < values.length; ++lane) out(q, lane) = sums_[q * step + lane] * shares_[q];
    }
  }

  std::size_t rounded_width() const {
    return (head_.shape.value_width + 8 * kLanes - 1) / (8 * kLanes) * 8 * kLanes;
  }

  const Head& head_;
  std::size_t first_, query_step_, score_step_;
  float *query_, *scores_, *sums_;
  float shares_[Q];
};

template <std::size_t Q>
void answer(const Head& head, std::size_t first, std::size_t count, float* scratch) {
  if constexpr (Q > 1) {
    if (count < Q) return answer<Q - 1>(head, first, count, scratch);
  }
  Pass<Q>(head, first, scratch).run();
}

}  // namespace

bool reads_in_place(const Attended& attended) {
  return attended.key_at.lane == 1 && (attended.value_at.lane == 1 || attended.value_at.token == 1);
}

std::size_t few_scratch(const AttentionShape& shape) {
  return kPassQueries * (whole_vectors(shape.width) + whole_vectors(shape.keys) +
                         whole_vectors(shape.value_width) + 8 * kLanes);
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
    answer<kPassQueries>(one, first, count, scratch);
    first += count;
  }
}

}  // namespace vlrt::kernels
