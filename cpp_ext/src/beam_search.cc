#include "vlrt/beam_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace vlrt {

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kPlaceholder = -1.0e9f;

bool better(const Candidate& a, const Candidate& b) {
  if (a.score != b.score) return a.score > b.score;
  return a.beam != b.beam ? a.beam < b.beam : a.token < b.token;
}

bool better_outcome(const Outcome& a, const Outcome& b) {
  return a.score > b.score;
}

}  // namespace

bool SearchOptions::ends(std::int32_t token) const {
  return std::find(end_ids.begin(), end_ids.end(), token) != end_ids.end();
}

float SearchOptions::normalized(float log_probability, std::size_t length) const {
  return log_probability / static_cast<float>(std::pow(static_cast<double>(length), length_penalty));
}

void TopCandidates::start(std::size_t count) {
  count_ = count;
  heap_.clear();
  heap_.reserve(count + 1);
}

void TopCandidates::scan(const ScoreRow& row, float running_score, std::int32_t beam) {
  for (std::size_t block = 0; block < row.maxima.size(); ++block) {
    // The same roundings as for the scores below, so that a bound is never under what it bounds.
    const float bound = row.normalizer.log_probability(row.maxima[block]) + running_score;
    if (enters(bound)) scan_block(row, running_score, beam, block * kBlock);
  }
}

void TopCandidates::scan_block(const ScoreRow& row, float running_score, std::int32_t beam,
                               std::size_t begin) {
  const std::size_t end = std::min(begin + kBlock, row.scores.size());
  for (std::size_t token = begin; token < end; ++token) {
    const float score = row.normalizer.log_probability(row.scores[token]) + running_score;
    if (!enters(score) || score == kNever) continue;
    heap_.push_back({score, beam, static_cast<std::int32_t>(token)});
    std::push_heap(heap_.begin(), heap_.end(), better);  // the worst at the front
    if (heap_.size() > count_) {
      std::pop_heap(heap_.begin(), heap_.end(), better);
      heap_.pop_back();
    }
  }
}

std::span<const Candidate> TopCandidates::finish() {
  std::sort(heap_.begin(), heap_.end(), better);
  return heap_;
}

BeamSearch::BeamSearch(SearchOptions options) : Search(std::move(options)) {
  // Every beam can lose at most one continuation to each end id, so k unfinished ones are among these.
  wanted_ = std::max<std::size_t>(2, 1 + options_.end_ids.size()) * options_.num_beams;
  const bool classic = options_.rule == Rule::kClassic;
  capacity_ = classic ? options_.num_return_sequences : options_.num_beams;
  beams_.reserve(options_.num_beams);
  next_.reserve(wanted_);
  found_.reserve(wanted_);
  finished_.reserve(capacity_ + 1);
}

void BeamSearch::reset(std::int32_t row) {
  beams_.assign(1, Beam{.row = row});
  finished_.clear();
  can_improve_ = true;
  done_ = false;
}

void BeamSearch::skip(std::size_t vocabulary, TorchGenerator& generator) const {
  if (options_.do_sample) generator.discard(2 * vocabulary * options_.num_beams);
}

void BeamSearch::advance(std::span<const ScoreRow> rows, std::size_t step, Trellis& trellis,
                         TorchGenerator& generator) {
  const auto found = options_.do_sample ? draw(rows, generator) : best(rows, generator);
  if (found.empty() && finished_.empty()) throw std::domain_error("no token has a finite score");
  next_.clear();
  if (options_.rule == Rule::kHf) {
    advance_hf(found, step, trellis);
  } else {
    advance_classic(found, step, trellis);
  }
}

std::span<const Candidate> BeamSearch::best(std::span<const ScoreRow> rows, TorchGenerator&) {
  top_.start(wanted_);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    top_.scan(rows[i], beams_[i].score, static_cast<std::int32_t>(i));
  }
  return top_.finish();
}

// `torch.multinomial` over the k·V continuations of an image, in the order in which it returns them. Beams
// that do not exist (before the first fan-out) have no probability but take their draws.
std::span<const Candidate> BeamSearch::draw(std::span<const ScoreRow> rows, TorchGenerator& generator) {
  const std::size_t vocabulary = rows.front().scores.size();
  probabilities_.resize(rows.size() * vocabulary);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t token = 0; token < vocabulary; ++token) {
      probabilities_[i * vocabulary + token] =
          rows[i].normalizer.log_probability(rows[i].scores[token]) + beams_[i].score;
    }
  }
  softmax(probabilities_);
  race_.start(wanted_);
  for (std::size_t i = 0; i < probabilities_.size(); ++i) {
    race_.run(probabilities_[i], static_cast<std::int64_t>(i), generator);
  }
  generator.discard(2 * vocabulary * (options_.num_beams - rows.size()));
  found_.clear();
  for (const auto& runner : race_.finish()) {
    const auto index = static_cast<std::size_t>(runner.index);
    const std::size_t beam = index / vocabulary, token = index % vocabulary;
    const float score = rows[beam].normalizer.log_probability(rows[beam].scores[token]) + beams_[beam].score;
    found_.push_back({score, static_cast<std::int32_t>(beam), static_cast<std::int32_t>(token)});
  }
  return found_;
}

// Makes `candidate` one of the next beams; false where k are taken.
bool BeamSearch::extend(const Candidate& candidate, std::size_t step, Trellis& trellis) {
  if (next_.size() == options_.num_beams) return false;
  const Beam& parent = beams_[static_cast<std::size_t>(candidate.beam)];
  const std::int32_t node = trellis.append(candidate.token, parent.node, trellis.slot(step, parent.row));
  next_.push_back({parent.row, node, candidate.token, candidate.score});
  return true;
}

// Puts `candidate` into the list of finished hypotheses if it is among the best; earlier ones win ties.
void BeamSearch::finish(const Candidate& candidate, std::size_t step, Trellis& trellis) {
  const float score = options_.normalized(candidate.score, step + 1);
  if (full() && score <= finished_.back().score) return;
  const Beam& parent = beams_[static_cast<std::size_t>(candidate.beam)];
  const std::int32_t node = trellis.append(candidate.token, parent.node, trellis.slot(step, parent.row));
  const Outcome outcome{node, score, candidate.score, options_.ends(candidate.token)};
  finished_.insert(std::upper_bound(finished_.begin(), finished_.end(), outcome, better_outcome), outcome);
  if (finished_.size() > capacity_) finished_.pop_back();
}

void BeamSearch::advance_hf(std::span<const Candidate> found, std::size_t step, Trellis& trellis) {
  const bool last = step + 1 >= options_.max_new_tokens;
  found_.assign(found.begin(), found.end());
  finish_hf(found_, step, trellis);
  if (!last) {
    // Sampled continuations come in the order of the draw, live beams are ordered by score.
    std::stable_sort(found_.begin(), found_.end(), [](auto& a, auto& b) { return a.score > b.score; });
    for (const Candidate& candidate : found_) {
      if (!options_.ends(candidate.token) && !extend(candidate, step, trellis)) break;
    }
  }
  beams_.swap(next_);
  check_hf(step + 1);
}

// Only the first k continuations may finish; the others are there to keep k beams alive.
void BeamSearch::finish_hf(std::span<const Candidate> found, std::size_t step, Trellis& trellis) {
  const bool closed = full() && options_.early_stopping == EarlyStopping::kOn;
  if (closed || !can_improve_) return;
  const bool last = step + 1 >= options_.max_new_tokens;
  for (std::size_t i = 0; i < std::min(found.size(), options_.num_beams); ++i) {
    if (last || options_.ends(found[i].token)) finish(found[i], step, trellis);
  }
}

// `_check_early_stop_heuristic` and `_beam_search_has_unfinished_sequences`.
void BeamSearch::check_hf(std::size_t length) {
  const bool farthest = options_.early_stopping == EarlyStopping::kNever && options_.length_penalty > 0.0f;
  const float worst = full() ? finished_.back().score : kPlaceholder;
  can_improve_ =
      can_improve_ && !beams_.empty() &&
      options_.normalized(beams_.front().score, farthest ? options_.max_new_tokens : length) > worst;
  done_ = !can_improve_ || (full() && options_.early_stopping == EarlyStopping::kOn);
}

void BeamSearch::advance_classic(std::span<const Candidate> found, std::size_t step, Trellis& trellis) {
  for (const Candidate& candidate : found) {
    if (options_.ends(candidate.token)) {
      finish(candidate, step, trellis);
    } else if (!extend(candidate, step, trellis)) {
      break;
    }
  }
  beams_.swap(next_);
  prune_classic(step + 1);
  done_ = beams_.empty() || step + 1 >= options_.max_new_tokens;
}

// The score a live hypothesis would have if all its further tokens were certain.
float BeamSearch::best_possible(float score, std::size_t length) const {
  return options_.normalized(score, options_.length_penalty > 0.0f ? options_.max_new_tokens : length + 1);
}

void BeamSearch::prune_classic(std::size_t length) {
  if (!full()) return;
  const float worst = finished_.back().score;
  std::erase_if(beams_, [&](const Beam& beam) { return best_possible(beam.score, length) <= worst; });
}

std::vector<Outcome> BeamSearch::outcomes(const Trellis& trellis) const {
  std::vector<Outcome> all = finished_;
  const bool lists_live = options_.rule == Rule::kClassic || !done_;
  for (const Beam& beam : beams_) {
    if (!lists_live || beam.node == kRoot) continue;
    all.push_back({beam.node, options_.normalized(beam.score, trellis.depth(beam.node)), beam.score, false});
  }
  const auto live = all.begin() + static_cast<std::ptrdiff_t>(finished_.size());
  std::stable_sort(live, all.end(), better_outcome);
  if (all.empty()) all.push_back({});  // cancelled before the first token
  if (all.size() > options_.num_return_sequences) all.resize(options_.num_return_sequences);
  return all;
}

void BeamSearch::candidates(std::vector<std::int32_t>& nodes) const {
  for (const Outcome& outcome : finished_) nodes.push_back(outcome.node);
  for (const Beam& beam : beams_) nodes.push_back(beam.node);
}

}  // namespace vlrt
