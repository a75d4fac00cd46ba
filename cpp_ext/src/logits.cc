#include "vlrt/logits.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "vlrt/log_softmax.h"

namespace vlrt {

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

std::size_t at(std::int32_t id) {
  return static_cast<std::size_t>(id);
}

void ban(std::span<float> scores, const Ids& ids) {
  for (const std::int32_t id : ids) scores[at(id)] = kNever;
}

void check_ids(const Ids& ids, std::size_t vocabulary) {
  for (const std::int32_t id : ids) {
    if (id < 0 || at(id) >= vocabulary) throw std::invalid_argument("token id outside the vocabulary");
  }
}

}  // namespace

LogitsProcessors::LogitsProcessors(LogitsOptions options, std::size_t vocabulary)
    : options_(std::move(options)), scratch_(vocabulary) {
  LogitsOptions& o = options_;
  for (const Ids* ids : {&o.end_ids, &o.forced_eos_ids, &o.suppress_tokens, &o.begin_suppress_tokens}) {
    check_ids(*ids, vocabulary);
  }
  for (const Ids& word : o.bad_words_ids) {
    if (word.empty()) throw std::invalid_argument("a bad word has no tokens");
    check_ids(word, vocabulary);
  }
  if (o.forced_bos_id >= 0) check_ids({o.forced_bos_id}, vocabulary);
  // A bad word that is just an end id is ignored, as transformers does.
  std::erase_if(o.bad_words_ids, [&](const Ids& word) {
    return word.size() == 1 && std::find(o.end_ids.begin(), o.end_ids.end(), word[0]) != o.end_ids.end();
  });
  const bool holds_end = !o.end_ids.empty() && (o.min_length > 0 || o.min_new_tokens > 0);
  masks_ = o.no_repeat_ngram_size > 0 || !o.bad_words_ids.empty() || holds_end ||
           !o.suppress_tokens.empty() || !o.begin_suppress_tokens.empty();
  rewrites_ = o.repetition_penalty != 1.0f || o.forced_bos_id >= 0 || !o.forced_eos_ids.empty() || o.warp ||
              o.renormalize;
  if (o.warp) ranked_.reserve(vocabulary);
}

bool LogitsProcessors::reads_history() const {
  return options_.repetition_penalty != 1.0f || options_.no_repeat_ngram_size > 0 ||
         !options_.bad_words_ids.empty();
}

void LogitsProcessors::apply(std::span<float> scores, const History& history) {
  if (options_.repetition_penalty != 1.0f) penalize_repetition(scores, history);
  if (options_.no_repeat_ngram_size > 0) ban_repeated_ngrams(scores, history);
  ban_words(scores, history);
  hold_back_end(scores, history);
  force(scores, history);
  suppress(scores, history);
  if (options_.warp) warp(scores);
  if (!options_.renormalize) return;
  const Normalizer normalizer = normalize(scores, {});
  if (std::isfinite(normalizer.log_sum)) subtract(scores, normalizer);  // else nothing is left to choose from
}

// Keskar et al. 2019 (CTRL), equation of section 4.1, with the sign rule of the reference.
void LogitsProcessors::penalize_repetition(std::span<float> scores, const History& history) {
  seen_.assign(history.tokens.begin(), history.tokens.end());
  std::sort(seen_.begin(), seen_.end());
  seen_.erase(std::unique(seen_.begin(), seen_.end()), seen_.end());
  for (const std::int32_t id : seen_) {
    float& score = scores[at(id)];
    score = score < 0 ? score * options_.repetition_penalty : score / options_.repetition_penalty;
  }
}

void LogitsProcessors::ban_repeated_ngrams(std::span<float> scores, const History& history) const {
  const std::span<const std::int32_t> tokens = history.tokens;
  const std::size_t size = options_.no_repeat_ngram_size;
  if (tokens.size() < size) return;
  const auto prefix = tokens.last(size - 1);
  for (std::size_t begin = 0; begin + size <= tokens.size(); ++begin) {
    const auto earlier = tokens.subspan(begin, size - 1);
    if (std::equal(prefix.begin(), prefix.end(), earlier.begin())) {
      scores[at(tokens[begin + size - 1])] = kNever;
    }
  }
}

void LogitsProcessors::ban_words(std::span<float> scores, const History& history) const {
  for (const Ids& word : options_.bad_words_ids) {
    // Longer than the context: ignored even where its beginning would fit, as in the reference.
    if (word.size() > 1 && word.size() > history.tokens.size()) continue;
    const auto tail = history.tokens.last(word.size() - 1);
    if (std::equal(tail.begin(), tail.end(), word.begin())) scores[at(word.back())] = kNever;
  }
}

void LogitsProcessors::hold_back_end(std::span<float> scores, const History& history) const {
  if (history.tokens.size() < options_.min_length || history.generated() < options_.min_new_tokens) {
    ban(scores, options_.end_ids);
  }
}

void LogitsProcessors::force(std::span<float> scores, const History& history) const {
  if (options_.forced_bos_id >= 0 && history.tokens.size() == 1) {
    std::fill(scores.begin(), scores.end(), kNever);
    scores[at(options_.forced_bos_id)] = 0.0f;
  }
  if (!options_.forced_eos_ids.empty() && history.generated() + 1 == options_.max_new_tokens) {
    std::fill(scores.begin(), scores.end(), kNever);
    for (const std::int32_t id : options_.forced_eos_ids) scores[at(id)] = 0.0f;
  }
}

void LogitsProcessors::suppress(std::span<float> scores, const History& history) const {
  ban(scores, options_.suppress_tokens);
  const bool after_forced_bos = history.prompt_length <= 1 && options_.forced_bos_id >= 0;
  if (history.generated() == (after_forced_bos ? 1u : 0u)) ban(scores, options_.begin_suppress_tokens);
}

void LogitsProcessors::warp(std::span<float> scores) {
  if (options_.temperature != 1.0f) {
    for (float& score : scores) score /= options_.temperature;
  }
  if (options_.top_k != 0) keep_top_k(scores);
  if (options_.top_p < 1.0f) keep_top_p(scores);
  if (options_.min_p > 0.0f) keep_min_p(scores);
  if (options_.typical_p < 1.0f) keep_typical(scores);
}

// Equal keys keep the order of their indices, without the allocation of a stable sort.
bool LogitsProcessors::ascending(const Ranked& a, const Ranked& b) {
  return a.key != b.key ? a.key < b.key : a.index < b.index;
}

bool LogitsProcessors::descending(const Ranked& a, const Ranked& b) {
  return a.key != b.key ? a.key > b.key : a.index < b.index;
}

void LogitsProcessors::keep_top_k(std::span<float> scores) {
  const std::size_t count = std::min(std::max(options_.top_k, options_.min_tokens_to_keep), scores.size());
  std::copy(scores.begin(), scores.end(), scratch_.begin());
  const auto kth = scratch_.begin() + static_cast<std::ptrdiff_t>(count) - 1;
  std::nth_element(scratch_.begin(), kth, scratch_.begin() + static_cast<std::ptrdiff_t>(scores.size()),
                   std::greater<>());
  for (float& score : scores) {
    if (score < *kth) score = kNever;
  }
}

// Finite scores with their indices; what is -inf has no probability and stays out of every sum.
void LogitsProcessors::rank_finite(std::span<const float> scores) {
  ranked_.clear();
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] > kNever) ranked_.push_back({scores[i], static_cast<std::int32_t>(i)});
  }
  if (ranked_.empty()) throw std::domain_error("no token has a finite score");
}

// Holtzman et al. 2020: the smallest set whose probability exceeds p, summed from the least likely up.
void LogitsProcessors::keep_top_p(std::span<float> scores) {
  rank_finite(scores);
  std::sort(ranked_.begin(), ranked_.end(), ascending);
  const float maximum = ranked_.back().key;
  double sum = 0.0;
  for (const Ranked& token : ranked_) sum += std::exp(static_cast<double>(token.key - maximum));
  double cumulative = 0.0;
  for (std::size_t i = 0; i + options_.min_tokens_to_keep < ranked_.size(); ++i) {
    cumulative += std::exp(static_cast<double>(ranked_[i].key - maximum)) / sum;
    if (static_cast<float>(cumulative) > 1.0f - options_.top_p) break;
    scores[at(ranked_[i].index)] = kNever;
  }
}

// Nguyen et al. 2024: at least `min_p` times the probability of the likeliest.
void LogitsProcessors::keep_min_p(std::span<float> scores) {
  rank_finite(scores);
  std::sort(ranked_.begin(), ranked_.end(), descending);
  const double floor =
      static_cast<double>(ranked_.front().key) + std::log(static_cast<double>(options_.min_p));
  for (std::size_t i = options_.min_tokens_to_keep; i < ranked_.size(); ++i) {
    if (static_cast<double>(ranked_[i].key) < floor) scores[at(ranked_[i].index)] = kNever;
  }
}

// Meister et al. 2022: tokens whose surprise is nearest the entropy, up to a mass.
void LogitsProcessors::keep_typical(std::span<float> scores) {
  rank_finite(scores);
  const Normalizer normalizer = normalize(scores, {});
  double entropy = 0.0;
  for (const Ranked& token : ranked_) {
    const double log_p = normalizer.log_probability(token.key);
    entropy -= log_p * std::exp(log_p);
  }
  for (Ranked& token : ranked_) {
    token.key = std::fabs(-normalizer.log_probability(token.key) - static_cast<float>(entropy));
  }
  std::sort(ranked_.begin(), ranked_.end(), ascending);
  double mass = 0.0;
  std::size_t last = 0;
  for (; last + 1 < ranked_.size(); ++last) {
    mass += std::exp(static_cast<double>(normalizer.log_probability(scores[at(ranked_[last].index)])));
    if (mass >= static_cast<double>(options_.typical_p)) break;
  }
  const float limit = ranked_[last].key;
  for (std::size_t i = options_.min_tokens_to_keep; i < ranked_.size(); ++i) {
    if (ranked_[i].key > limit) scores[at(ranked_[i].index)] = kNever;
  }
}

}  // namespace vlrt
