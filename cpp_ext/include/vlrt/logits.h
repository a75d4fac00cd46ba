// Rules that change the scores of the next token, with the meaning and in the order of transformers 4.57.6.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace vlrt {

using Ids = std::vector<std::int32_t>;

// Neutral values switch a rule off. Ids lie in [0, vocabulary).
struct LogitsOptions {
  float repetition_penalty = 1.0f;
  std::size_t no_repeat_ngram_size = 0;
  std::vector<Ids> bad_words_ids;
  std::size_t min_length = 0;      // prompt included
  std::size_t min_new_tokens = 0;  // prompt not included
  std::size_t max_new_tokens = 0;  // where `forced_eos_ids` apply
  Ids end_ids;
  std::int32_t forced_bos_id = -1;
  Ids forced_eos_ids;
  Ids suppress_tokens;
  Ids begin_suppress_tokens;
  // Only where tokens are drawn at random:
  bool warp = false;
  float temperature = 1.0f;
  std::size_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float typical_p = 1.0f;
  std::size_t min_tokens_to_keep = 1;
  bool renormalize = false;
};

// One hypothesis as the rules see it: prompt and generated tokens, oldest first.
struct History {
  std::span<const std::int32_t> tokens;
  std::size_t prompt_length = 0;
  std::size_t generated() const { return tokens.size() - prompt_length; }
};

// Applies `generation/logits_process.py` in the order of `generation/utils.py::_get_logits_processor`.
class LogitsProcessors {
 public:
  LogitsProcessors(LogitsOptions options, std::size_t vocabulary);

  bool active() const { return masks_ || rewrites_; }
  // False where rules only ever set scores to -inf: then the others' order and normalizer stay true.
  bool rewrites() const { return rewrites_; }
  bool reads_history() const;

  void apply(std::span<float> scores, const History& history);

 private:
  void penalize_repetition(std::span<float> scores, const History& history);
  void ban_repeated_ngrams(std::span<float> scores, const History& history) const;
  void ban_words(std::span<float> scores, const History& history) const;
  void hold_back_end(std::span<float> scores, const History& history) const;
  void force(std::span<float> scores, const History& history) const;
  void suppress(std::span<float> scores, const History& history) const;
  void warp(std::span<float> scores);
  void keep_top_k(std::span<float> scores);
  void keep_top_p(std::span<float> scores);
  void keep_min_p(std::span<float> scores);
  void keep_typical(std::span<float> scores);

  struct Ranked {
    float key;
    std::int32_t index;
  };
  static bool ascending(const Ranked& a, const Ranked& b);
  static bool descending(const Ranked& a, const Ranked& b);
  void rank_finite(std::span<const float> scores);

  LogitsOptions options_;
  bool masks_;
  bool rewrites_;
  std::vector<float> scratch_;
  std::vector<Ranked> ranked_;
  Ids seen_;
};

}  // namespace vlrt
