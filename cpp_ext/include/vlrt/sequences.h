// Greedy decoding and independent sampled sequences.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vlrt/search.h"

namespace vlrt {

// `GenerationMixin._sample` of transformers 4.57.6: one token per sequence and step, the likeliest or drawn.
// Log-probabilities are those of the model's own distribution (with `renormalize` that of the processed
// scores). Sequences come back in the order in which they were drawn, not ranked.
class Sequences final : public Search {
 public:
  Sequences(SearchOptions options, bool scores_are_log_probabilities);

  void reset(std::int32_t row) override;
  void advance(std::span<const ScoreRow> rows, std::size_t step, Trellis& trellis,
               TorchGenerator& generator) override;
  void skip(std::size_t vocabulary, TorchGenerator& generator) const override;
  bool done() const override { return beams_.empty(); }
  std::vector<Outcome> outcomes(const Trellis& trellis) const override;
  void candidates(std::vector<std::int32_t>& nodes) const override;

 private:
  std::int32_t choose(const ScoreRow& row, TorchGenerator& generator);
  float log_probability(const ScoreRow& row, std::int32_t token) const;

  bool scores_are_log_probabilities_;
  std::vector<float> probabilities_;
  std::vector<Outcome> sequences_;
  std::vector<std::size_t> live_;  // the sequence that each beam is
};

}  // namespace vlrt
