#include "attention_exp_avx512.h"
#include "attention_tile.h"

namespace vlrt::kernels {

namespace {

template <std::size_t N>
using Vectors = __m512[N];

const float* at(const float* base, const Strides& steps, std::size_t batch, std::size_t head,
                std::size_t token) {
  return base + static_cast<std::ptrdiff_t>(batch) * steps.batch +
         static_cast<std::ptrdiff_t>(head) * steps.head + static_cast<std::ptrdiff_t>(token) * steps.token;
}

// GCC would rather load a vector again for each of the eight products than keep it, and loads are scarce.
VLRT_VECTOR void keep_in_register(__m512& x) {
#if defined(__GNUC__)
  asm("" : "+v"(x));
#else
  (void)x;
#endif
}

template <std::size_t N>
VLRT_VECTOR void add_products(const float* eight, const float* lanes, Vectors<N> (&sums)[kInterleaved]) {
  __m512 factors[N];
#pragma GCC unroll 3
  for (std::size_t n = 0; n < N; ++n) {
    factors[n] = _mm512_loadu_ps(lanes + kLanes * n);
    keep_in_register(factors[n]);
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kInterleaved; ++i) {
    const __m512 one = _mm512_set1_ps(eight[i]);
#pragma GCC unroll 3
    for (std::size_t n = 0; n < N; ++n) sums[i][n] = _mm512_fmadd_ps(one, factors[n], sums[i][n]);
  }
}

// A tile `16 N` queries wide.
template <std::size_t N>
class Tile {
 public:
  static constexpr std::size_t kStep = kLanes * N;

  Tile(const AttentionShape& shape, const Attended& attended, const QueryTile& tile, const PackedHead& packed,
       const TileScratch& scratch)
      : shape_(shape), attended_(attended), tile_(tile), packed_(packed), scratch_(scratch) {
    for (std::size_t n = 0; n < N; ++n) {
      greatest_[n] = _mm512_set1_ps(kLowestScore);
      total_[n] = _mm512_setzero_ps();
    }
  }

  void run() {
    take(attended_.query, attended_.query_at, shape_.width, shape_.scale * kLog2E, scratch_.query);
    for (std::size_t key = 0; key < shape_.keys; key += kBlockKeys) {
      attend_block(key, std::min(kBlockKeys, shape_.keys - key));
    }
    give();
  }

 private:
  // [tokens of the tile, lanes] -> [lanes][tokens of the tile]; tokens beyond the last are zeros.
  void take(const float* source, const Strides& steps, std::size_t lanes, float factor, float* target) const {
    const float* from = at(source, steps, tile_.batch, tile_.head, tile_.first);
    for (std::size_t token = 0; token < kStep; token += kInterleaved) {
      const std::size_t rows = token < tile_.count ? std::min(kInterleaved, tile_.count - token) : 0;
      interleave_avx512(from + (rows == 0 ? 0 : static_cast<std::ptrdiff_t>(token) * steps.token),
                        {rows, lanes, steps.token, steps.lane}, factor, target + token, kStep);
    }
  }

  void attend_block(std::size_t key, std::size_t keys) {
    Vectors<N> greatest;
    std::copy_n(greatest_, N, greatest);
    if (attended_.mask != nullptr) {
      const std::ptrdiff_t skipped = static_cast<std::ptrdiff_t>(key) * attended_.mask_at.lane;
      take(attended_.mask + skipped, attended_.mask_at, keys, kLog2E, scratch_.mask);
      score<true>(key, keys, greatest);
    } else {
      score<false>(key, keys, greatest);
    }
    Vectors<N> fading;
    for (std::size_t n = 0; n < N; ++n) fading[n] = exp2_ps(_mm512_sub_ps(greatest_[n], greatest[n]));
    std::copy_n(greatest, N, greatest_);
    weigh(keys, fading);
    for (std::size_t lane = 0; lane < shape_.value_width; lane += kInterleaved) {
      add_values(packed_.values + lane * shape_.keys + key * kInterleaved, keys, key == 0 ? nullptr : fading,
                 scratch_.sums + lane * kStep);
    }
  }

  template <bool masked>
  void score(std::size_t key, std::size_t keys, Vectors<N>& greatest) const {
    for (std::size_t i = 0; i < keys; i += kInterleaved) {
      const std::size_t rows = std::min(kInterleaved, keys - i);
      score_group<masked>(packed_.keys + (key + i) * shape_.width, scratch_.mask + i * kStep, rows,
                          scratch_.scores + i * kStep, greatest);
    }
  }

  template <bool masked>
  void score_group(const float* keys, const float* mask, std::size_t rows, float* scores,
                   Vectors<N>& greatest) const {
    Vectors<N> sums[kInterleaved];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kInterleaved; ++i) {
#pragma GCC unroll 3
      for (std::size_t n = 0; n < N; ++n) sums[i][n] = _mm512_setzero_ps();
    }
    const float* query = scratch_.query;
    for (std::size_t lane = 0; lane < shape_.width; ++lane, keys += kInterleaved, query += kStep) {
      add_products<N>(keys, query, sums);
    }
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kInterleaved; ++i) {
      if (i >= rows) break;
#pragma GCC unroll 3
      for (std::size_t n = 0; n < N; ++n) {
        const std::size_t place = i * kStep + kLanes * n;
        if (masked) sums[i][n] = bounded_score(_mm512_add_ps(sums[i][n], _mm512_loadu_ps(mask + place)));
        greatest[n] = _mm512_max_ps(greatest[n], sums[i][n]);
        _mm512_storeu_ps(scores + place, sums[i][n]);
      }
    }
  }

  // Scores become weights.
  void weigh(std::size_t keys, const Vectors<N>& fading) {
    Vectors<N> greatest, sums;
    for (std::size_t n = 0; n < N; ++n) {
      greatest[n] = greatest_[n];
      sums[n] = _mm512_setzero_ps();
    }
    float* scores = scratch_.scores;
    for (std::size_t i = 0; i < keys; ++i, scores += kStep) {
#pragma GCC unroll 3
      for (std::size_t n = 0; n < N; ++n) {
        const __m512 score = _mm512_loadu_ps(scores + kLanes * n);
        const __m512 weight = exp2_ps(_mm512_sub_ps(score, greatest[n]));
        _mm512_storeu_ps(scores + kLanes * n, weight);
        sums[n] = _mm512_add_ps(sums[n], weight);
      }
    }
    for (std::size_t n = 0; n < N; ++n) total_[n] = _mm512_fmadd_ps(total_[n], fading[n], sums[n]);
  }

  // Eight dimensions of the values; a null `fading` says that nothing was summed before.
  void add_values(const float* values, std::size_t keys, const __m512* fading, float* target) const {
    Vectors<N> sums[kInterleaved];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kInterleaved; ++i) {
#pragma GCC unroll 3
      for (std::size_t n = 0; n < N; ++n) sums[i][n] = _mm512_setzero_ps();
    }
    const float* weights = scratch_.scores;
    for (std::size_t key = 0; key < keys; ++key, values += kInterleaved, weights += kStep) {
      add_products<N>(values, weights, sums);
    }
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kInterleaved; ++i) {
#pragma GCC unroll 3
      for (std::size_t n = 0; n < N; ++n) {
        float* const place = target + i * kStep + kLanes * n;
        if (fading != nullptr) sums[i][n] = _mm512_fmadd_ps(_mm512_loadu_ps(place), fading[n], sums[i][n]);
        _mm512_storeu_ps(place, sums[i][n]);
      }
    }
  }

  // Divides by the weights' sum and writes [tokens, lanes] where the caller wants them.
  void give() const {
    Vectors<N> share;
    for (std::size_t n = 0; n < N; ++n) share[n] = _mm512_div_ps(_mm512_set1_ps(1.0f), total_[n]);
    for (std::size_t lane = 0; lane < shape_.value_width; ++lane) {
      for (std::size_t n = 0; n < N; ++n) {
        float* const place = scratch_.sums + lane * kStep + kLanes * n;
        _mm512_storeu_ps(place, _mm512_mul_ps(_mm512_loadu_ps(place), share[n]));
      }
    }
    const Strides& steps = attended_.out_at;
    float* const out = const_cast<float*>(at(attended_.out, steps, tile_.batch, tile_.head, tile_.first));
    if (steps.token == 1) {
      give_columns(out);
    } else {
      give_rows(out);
    }
  }

  void give_columns(float* out) const {
    for (std::size_t lane = 0; lane < shape_.value_width; ++lane) {
      std::copy_n(scratch_.sums + lane * kStep, tile_.count,
                  out + static_cast<std::ptrdiff_t>(lane) * attended_.out_at.lane);
    }
  }

  void give_rows(float* out) const {
    const Strides& steps = attended_.out_at;
    if (steps.lane != 1) {
      for (std::size_t token = 0; token < tile_.count; ++token) {
        for (std::size_t lane = 0; lane < shape_.value_width; ++lane) {
          out[static_cast<std::ptrdiff_t>(token) * steps.token +
              static_cast<std::ptrdiff_t>(lane) * steps.lane] = scratch_.sums[lane * kStep + token];
        }
      }
      return;
    }
    for (std::size_t lane = 0; lane < shape_.value_width; lane += kInterleaved) {
      const Grid grid{std::min(kInterleaved, shape_.value_width - lane), tile_.count,
                      static_cast<std::ptrdiff_t>(kStep), 1};
      interleave_avx512(scratch_.sums + lane * kStep, grid, 1.0f, out + lane, steps.token, true);
    }
  }

  const AttentionShape& shape_;
  const Attended& attended_;
  const QueryTile& tile_;
  const PackedHead& packed_;
  const TileScratch& scratch_;
  Vectors<N> greatest_, total_;
};

}  // namespace

void pack_head(const AttentionShape& shape, const Attended& attended, std::size_t batch, std::size_t head,
               const PackedHead& packed) {
  const Strides &keys = attended.key_at, &values = attended.value_at;
  for (std::size_t key = 0; key < shape.keys; key += kInterleaved) {
    const Grid grid{std::min(kInterleaved, shape.keys - key), shape.width, keys.token, keys.lane};
    interleave_avx512(at(attended.key, keys, batch, head, key), grid, 1.0f, packed.keys + key * shape.width,
                      kInterleaved);
  }
  const float* value = at(attended.value, values, batch, head, 0);
  for (std::size_t lane = 0; lane < shape.value_width; lane += kInterleaved) {
    const Grid grid{std::min(kInterleaved, shape.value_width - lane), shape.keys, values.lane, values.token};
    interleave_avx512(value + static_cast<std::ptrdiff_t>(lane) * values.lane, grid, 1.0f,
                      packed.values + lane * shape.keys, kInterleaved);
  }
}

void attend_tile(const AttentionShape& shape, const Attended& attended, const QueryTile& tile,
                 const PackedHead& packed, const TileScratch& scratch) {
  if (tile.count <= kLanes) {
    Tile<1>(shape, attended, tile, packed, scratch).run();
  } else if (tile.count <= 2 * kLanes) {
    Tile<2>(shape, attended, tile, packed, scratch).run();
  } else {
    Tile<3>(shape, attended, tile, packed, scratch).run();
  }
}

}  // namespace vlrt::kernels
