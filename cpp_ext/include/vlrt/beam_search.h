// N-best beam search by two published rules.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vlrt/sampler.h"
#include "vlrt/search.h"

namespace vlrt {

// One continuation: `beam` of the previous step, with `token` after it.
struct Candidate {
  float score;
  std::int32_t beam;
  std::int32_t token;
};

// The best `count` continuations of several rows in one pass: a heap, and whole blocks passed over whose
// maximum cannot enter it. Among equal scores the lowest beam wins, then the lowest token.
class TopCandidates {
 public:
  void start(std::size_t count);
  void scan(const ScoreRow& row, float running_score, std::int32_t beam);
  // Best first; valid until `start`.
  std::span<const Candidate> finish();

 private:
  void scan_block(const ScoreRow& row, float running_score, std::int32_t beam, std::size_t begin);
  bool enters(float score) const { return heap_.size() < count_ || score > heap_.front().score; }

  std::size_t count_ = 0;
  std::vector<Candidate> heap_;
};

// `Rule::kHf` reproduces `GenerationMixin._beam_search` of transformers 4.57.6, scores included; also its
// sampling of 2k continuations without replacement. One difference: hypotheses that transformers keeps alive
// as placeholders (score -1e9) where fewer than k continuations are possible are dropped, so fewer may
// return.
//
// `Rule::kClassic` is the search of Vinyals et al. 2015 as google/im2txt runs it: the k best unfinished
// sentences live on; a finished one found among better continuations than the k-th live goes to the n-best
// list; a live one that can no longer beat the worst of a full list is dropped (log-probabilities only fall).
// What is still alive at the last token is returned after the finished ones.
class BeamSearch final : public Search {
 public:
  explicit BeamSearch(SearchOptions options);

  void reset(std::int32_t row) override;
  void advance(std::span<const ScoreRow> rows, std::size_t step, Trellis& trellis,
               TorchGenerator& generator) override;
  void skip(std::size_t vocabulary, TorchGenerator& generator) const override;
  bool done() const override { return done_; }
  std::vector<Outcome> outcomes(const Trellis& trellis) const override;
  void candidates(std::vector<std::int32_t>& nodes) const override;

 private:
  std::span<const Candidate> best(std::span<const ScoreRow> rows, TorchGenerator& generator);
  std::span<const Candidate> draw(std::span<const ScoreRow> rows, TorchGenerator& generator);
  void advance_hf(std::span<const Candidate> found, std::size_t step, Trellis& trellis);
  void finish_hf(std::span<const Candidate> found, std::size_t step, Trellis& trellis);
  void check_hf(std::size_t length);
  void advance_classic(std::span<const Candidate> found, std::size_t step, Trellis& trellis);
  void prune_classic(std::size_t length);
  float best_possible(float score, std::size_t length) const;
  bool extend(const Candidate& candidate, std::size_t step, Trellis& trellis);
  void finish(const Candidate& candidate, std::size_t step, Trellis& trellis);
  bool full() const { return finished_.size() == capacity_; }

  std::size_t wanted_;    // continuations looked at in a step
  std::size_t capacity_;  // of the list of finished hypotheses
  TopCandidates top_;
  ExponentialRace race_;
  std::vector<float> probabilities_;
  std::vector<Candidate> found_;
  std::vector<Beam> next_;
  std::vector<Outcome> finished_;  // best first
  bool can_improve_ = true;
  bool done_ = false;
};

}  // namespace vlrt
