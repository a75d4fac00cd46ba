// From a step's logits to the next tokens, the streamed ones and the hypotheses returned.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "vlrt/decode.h"

namespace vlrt {

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

std::size_t at(std::int32_t index) {
  return static_cast<std::size_t>(index);
}

}  // namespace

// Classifier-free guidance on logits ("super conditioning"): Ho and Salimans, arXiv 2207.12598, equation 6,
// with scale = 1 + w. The result stands in the conditional rows; what the graph forbids without the prompt
// follows the prompt's score, because a difference of infinities is none.
void Decoder::guide(float scale) {
  const std::size_t lane = rows_per_image_ * shape_.vocabulary;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    float* conditional = logits() + slot * 2 * lane;
    const float* unconditional = conditional + lane;
    for (std::size_t i = 0; i < lane; ++i) {
      const float guided = unconditional[i] + scale * (conditional[i] - unconditional[i]);
      conditional[i] = unconditional[i] == kNever ? conditional[i] : guided;
    }
  }
}

// Images take their turn in the order they were given in, so that draws do not depend on who has finished.
void Decoder::choose(const Request& request, std::size_t step) {
  for (std::size_t image = 0; image < searches_.size(); ++image) {
    Search& search = *searches_[image];
    if (live_[image] == 0) {
      search.skip(shape_.vocabulary, sampling_);
      continue;
    }
    try {
      read_scores(search, image, request, step);
      search.advance(score_rows_, step, trellis_, sampling_);
    } catch (const std::domain_error& error) {
      const std::string where = "image " + std::to_string(image) + ", new token " + std::to_string(step);
      throw ScoreError(where + ": " + error.what());
    }
  }
}

void Decoder::read_scores(const Search& search, std::size_t image, const Request& request, std::size_t step) {
  score_rows_.clear();
  const Ids& prompt = request.prompts[image * lanes_];
  for (const Beam& beam : search.beams()) {
    // Before the first fan-out all sequences of an image share a row.
    if (!score_rows_.empty() && step == 0) {
      score_rows_.push_back(score_rows_.front());
      continue;
    }
    history_.clear();
    if (processors_->active()) {
      history_.assign(prompt.begin(), prompt.end());
      if (processors_->reads_history()) {
        trellis_.tokens(beam.node, history_);
      } else {
        history_.resize(prompt.size() + step);
      }
    }
    score_rows_.push_back(read_row(beam.row, request, {history_, prompt.size()}));
  }
}

// In beam search rules act on log-probabilities, elsewhere on logits. Where they only mask, subtracting the
// normalizer waits for the few candidates that are looked at.
ScoreRow Decoder::read_row(std::int32_t row, const Request& request, const History& history) {
  const std::size_t vocabulary = shape_.vocabulary;
  const std::span raw(logits() + at(row) * vocabulary, vocabulary);
  const std::span maxima(maxima_.as<float>() + at(row) * block_count(vocabulary), block_count(vocabulary));
  const Normalizer normalizer = normalize(raw, maxima);
  if (!std::isfinite(normalizer.log_sum)) throw std::domain_error("logits are not finite");
  if (!processors_->active()) return {raw, normalizer, maxima, raw, normalizer};
  if (!request.search.uses_beams()) {
    const std::span processed(processed_.as<float>() + at(row) * vocabulary, vocabulary);
    std::copy(raw.begin(), raw.end(), processed.begin());
    processors_->apply(processed, history);
    return {processed, normalizer, maxima, raw, normalizer};
  }
  if (!processors_->rewrites()) {
    processors_->apply(raw, history);
    return {raw, normalizer, maxima, raw, normalizer};
  }
  subtract(raw, normalizer);
  processors_->apply(raw, history);
  block_maxima(raw, maxima);
  return {raw, {}, maxima, raw, {}};
}

void Decoder::stream(const Callbacks& callbacks) {
  if (!callbacks.on_token) return;
  for (std::size_t image = 0; image < searches_.size(); ++image) {
    if (live_[image] == 0) continue;
    const Search& search = *searches_[image];
    if (search.done()) {
      const auto outcomes = search.outcomes(trellis_);
      if (!outcomes.empty()) emit(image, outcomes[0].node, trellis_.depth(outcomes[0].node), callbacks);
      continue;
    }
    nodes_.clear();
    search.candidates(nodes_);
    emit(image, nodes_.front(), trellis_.agreed(nodes_), callbacks);
  }
}

void Decoder::emit(std::size_t image, std::int32_t node, std::size_t until, const Callbacks& callbacks) {
  if (until <= emitted_[image]) return;
  history_.clear();
  trellis_.tokens(node, history_);
  while (emitted_[image] < until) callbacks.on_token(image, history_[emitted_[image]++]);
}

std::vector<Hypothesis> Decoder::gather(const Search& search, bool with_records) const {
  std::vector<Hypothesis> hypotheses;
  for (const Outcome& outcome : search.outcomes(trellis_)) {
    Hypothesis hypothesis;
    trellis_.tokens(outcome.node, hypothesis.tokens);
    hypothesis.score = outcome.score;
    hypothesis.log_probability = outcome.log_probability;
    hypothesis.finished = outcome.finished;
    for (std::size_t i = 0; with_records && i < records_.size(); ++i) {
      hypothesis.records.emplace_back(hypothesis.tokens.size() * trellis_.record_bytes(i));
      trellis_.record(i, outcome.node, hypothesis.records.back().data());
    }
    hypotheses.push_back(std::move(hypothesis));
  }
  return hypotheses;
}

}  // namespace vlrt
