#include "vlrt/sequences.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "vlrt/sampler.h"

namespace vlrt {

Sequences::Sequences(SearchOptions options, bool scores_are_log_probabilities)
    : Search(std::move(options)), scores_are_log_probabilities_(scores_are_log_probabilities) {
  beams_.reserve(options_.num_return_sequences);
  live_.reserve(options_.num_return_sequences);
}

void Sequences::reset(std::int32_t row) {
  beams_.assign(options_.num_return_sequences, Beam{.row = row});
  sequences_.assign(options_.num_return_sequences, Outcome{});
  live_.resize(options_.num_return_sequences);
  std::iota(live_.begin(), live_.end(), std::size_t{0});
}

void Sequences::skip(std::size_t vocabulary, TorchGenerator& generator) const {
  if (options_.do_sample) generator.discard(2 * vocabulary * options_.num_return_sequences);
}

std::int32_t Sequences::choose(const ScoreRow& row, TorchGenerator& generator) {
  if (!options_.do_sample) return greedy(row.scores);
  probabilities_.assign(row.scores.begin(), row.scores.end());
  softmax(probabilities_);
  return multinomial(probabilities_, generator);
}

float Sequences::log_probability(const ScoreRow& row, std::int32_t token) const {
  const auto index = static_cast<std::size_t>(token);
  if (scores_are_log_probabilities_) return row.scores[index];
  return row.raw_normalizer.log_probability(row.raw[index]);
}

void Sequences::advance(std::span<const ScoreRow> rows, std::size_t step, Trellis& trellis,
                        TorchGenerator& generator) {
  const std::size_t vocabulary = rows.front().scores.size();
  std::size_t kept = 0, drawn = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (options_.do_sample) generator.discard(2 * vocabulary * (live_[i] - drawn));
    drawn = live_[i] + 1;
    const std::int32_t token = choose(rows[i], generator);
    if (token < 0) throw std::domain_error("no token has a finite score");
    Beam beam = beams_[i];
    Outcome& sequence = sequences_[live_[i]];
    beam.token = token;
    beam.node = trellis.append(token, beam.node, trellis.slot(step, beam.row));
    beam.score += log_probability(rows[i], token);
    sequence = {beam.node, options_.normalized(beam.score, step + 1), beam.score, options_.ends(token)};
    if (sequence.finished || step + 1 >= options_.max_new_tokens) continue;
    live_[kept] = live_[i];
    beams_[kept++] = beam;
  }
  if (options_.do_sample) generator.discard(2 * vocabulary * (options_.num_return_sequences - drawn));
  beams_.resize(kept);
  live_.resize(kept);
}

std::vector<Outcome> Sequences::outcomes(const Trellis&) const {
  return sequences_;
}

void Sequences::candidates(std::vector<std::int32_t>& nodes) const {
  for (const Outcome& sequence : sequences_) nodes.push_back(sequence.node);
}

}  // namespace vlrt
