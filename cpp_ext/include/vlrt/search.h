// What the loop asks of a search over one image, and what a search sees of a step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vlrt/log_softmax.h"
#include "vlrt/logits.h"
#include "vlrt/noise.h"
#include "vlrt/trellis.h"

namespace vlrt {

enum class Rule { kHf, kClassic };
enum class EarlyStopping { kOff, kOn, kNever };

struct SearchOptions {
  Rule rule = Rule::kHf;
  std::size_t num_beams = 1;
  std::size_t num_return_sequences = 1;
  std::size_t max_new_tokens = 1;
  float length_penalty = 1.0f;
  EarlyStopping early_stopping = EarlyStopping::kOff;
  bool do_sample = false;
  Ids end_ids;

  bool uses_beams() const { return num_beams > 1 || rule == Rule::kClassic; }
  bool ends(std::int32_t token) const;
  // log p / length^penalty (Wu et al. 2016 without the constants, as transformers has it), in float as there.
  float normalized(float log_probability, std::size_t length) const;
};

// The scores of one row's next token. `scores` are what the choice is made from; the log-probability of a
// score is `normalizer.log_probability(score)`, or the score itself where the normalizer is neutral.
struct ScoreRow {
  std::span<const float> scores;
  Normalizer normalizer;
  std::span<const float> maxima;  // upper bounds per block of `scores`
  std::span<const float> raw;     // the model's own logits, and
  Normalizer raw_normalizer;      // their normalizer
};

// One live hypothesis: the row its state lies in, its last node and token, its score so far.
struct Beam {
  std::int32_t row = 0;
  std::int32_t node = kRoot;
  std::int32_t token = 0;
  float score = 0.0f;
};

struct Outcome {
  std::int32_t node = kRoot;
  float score = 0.0f;            // what the hypotheses are ranked by
  float log_probability = 0.0f;  // sum over the tokens
  bool finished = false;         // ended with an end id
};

// A search over the hypotheses of one image.
class Search {
 public:
  explicit Search(SearchOptions options) : options_(std::move(options)) {}
  virtual ~Search() = default;

  // Back to the prompt, whose state lies in `row`.
  virtual void reset(std::int32_t row) = 0;
  // Chooses the next tokens. `rows[i]` belongs to `beams()[i]`, whose new rows are then those of their
  // parents.
  virtual void advance(std::span<const ScoreRow> rows, std::size_t step, Trellis& trellis,
                       TorchGenerator& generator) = 0;
  // Draws and forgets what a finished image would have drawn, so that the others get the reference's numbers.
  virtual void skip(std::size_t vocabulary, TorchGenerator& generator) const = 0;
  virtual bool done() const = 0;
  // The hypotheses to return, best first; also before the search is done.
  virtual std::vector<Outcome> outcomes(const Trellis& trellis) const = 0;
  // Last nodes of everything that may still be returned.
  virtual void candidates(std::vector<std::int32_t>& nodes) const = 0;

  std::span<Beam> beams() { return beams_; }
  std::span<const Beam> beams() const { return beams_; }

 protected:
  SearchOptions options_;
  std::vector<Beam> beams_;
};

}  // namespace vlrt
