// Caches, random numbers, rules and the trellis, for the sanitizers' eyes; values are tested from Python.
#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "check.h"
#include "vlrt/kv_cache.h"
#include "vlrt/log_softmax.h"
#include "vlrt/logits.h"
#include "vlrt/noise.h"
#include "vlrt/sampler.h"
#include "vlrt/trellis.h"

namespace vlrt::test {

namespace {

std::vector<std::int32_t> random_ids(TorchGenerator& generator, std::size_t count, std::size_t below) {
  std::vector<std::int64_t> drawn(count);
  generator.randint(0, static_cast<std::int64_t>(below), drawn);
  return {drawn.begin(), drawn.end()};
}

}  // namespace

TEST(caches_gather_in_place) {
  TorchGenerator generator(1);
  for (int round = 0; round < 500; ++round) {
    const std::size_t rows = 1 + generator.random() % 9, heads = 1 + generator.random() % 3;
    const KvShape shape{rows, heads, 5, 3, 2};
    KvCache cache(shape);
    std::vector<std::byte> before(rows * cache.row_bytes());
    for (std::byte& value : before) value = static_cast<std::byte>(generator.random());
    std::memcpy(cache.data(), before.data(), before.size());
    const auto parents = random_ids(generator, 1 + generator.random() % rows, rows);
    const auto lengths = random_ids(generator, rows, 6);
    cache.reorder(parents, lengths);
    for (std::size_t row = 0; row < parents.size(); ++row) {
      const auto parent = static_cast<std::size_t>(parents[row]);
      const auto filled = static_cast<std::size_t>(lengths[parent]) * 6;
      for (std::size_t head = 0; head < heads; ++head) {
        const std::size_t place = head * 30;
        CHECK(std::memcmp(cache.data() + row * cache.row_bytes() + place,
                          before.data() + parent * cache.row_bytes() + place, filled) == 0);
      }
    }
  }
}

TEST(moves_refuse_rows_outside) {
  RowMoves moves(3);
  const std::vector<std::int32_t> outside{0, 3}, negative{-1}, many{0, 1, 2, 0};
  CHECK(throws<std::out_of_range>([&] { moves.plan(outside); }));
  CHECK(throws<std::out_of_range>([&] { moves.plan(negative); }));
  CHECK(throws<std::invalid_argument>([&] { moves.plan(many); }));
}

TEST(log_softmax_of_any_size) {
  TorchGenerator generator(2);
  for (std::size_t size = 1; size < 700; size += 7) {
    std::vector<float> row(size), maxima(block_count(size));
    generator.randn(row);
    const Normalizer normalizer = normalize(row, maxima);
    CHECK(normalizer.maximum == *std::max_element(row.begin(), row.end()));
    CHECK(normalizer.maximum == *std::max_element(maxima.begin(), maxima.end()));
    subtract(row, normalizer);
    double sum = 0;
    for (const float value : row) sum += std::exp(static_cast<double>(value));
    CHECK(near(sum, 1.0, 1e-5));
  }
}

TEST(log_softmax_shows_what_is_not_finite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::nanf(""), kInfinity}) {
    const std::vector<float> row{1.0f, bad, 2.0f};
    CHECK(!std::isfinite(normalize(row, {}).log_sum));
  }
  const std::vector<float> nothing(5, -kInfinity);
  CHECK(!std::isfinite(normalize(nothing, {}).log_sum));
}

TEST(every_rule_at_once) {
  TorchGenerator generator(3);
  constexpr std::size_t kVocabulary = 90;
  for (int round = 0; round < 300; ++round) {
    LogitsOptions options;
    options.repetition_penalty = 0.5f + generator.uniform_float();
    options.no_repeat_ngram_size = generator.random() % 4;
    options.bad_words_ids = {random_ids(generator, 1, kVocabulary), random_ids(generator, 3, kVocabulary)};
    options.min_length = generator.random() % 8;
    options.end_ids = random_ids(generator, 2, kVocabulary);
    options.suppress_tokens = random_ids(generator, 3, kVocabulary);
    options.begin_suppress_tokens = random_ids(generator, 3, kVocabulary);
    options.warp = true;
    options.temperature = 0.5f + generator.uniform_float();
    options.top_k = generator.random() % 100;
    options.top_p = generator.uniform_float();
    options.min_p = generator.uniform_float() / 2;
    options.typical_p = 0.1f + generator.uniform_float();
    options.min_tokens_to_keep = 1 + generator.random() % 3;
    options.renormalize = round % 2 == 0;
    LogitsProcessors processors(options, kVocabulary);
    std::vector<float> row(kVocabulary);
    generator.randn(row);
    const auto tokens = random_ids(generator, 1 + generator.random() % 20, kVocabulary);
    processors.apply(row, {tokens, 1});
    CHECK(greedy(row) >= 0);
    for (const std::int32_t id : options.suppress_tokens)
      CHECK(std::isinf(row[static_cast<std::size_t>(id)]));
  }
}

TEST(draws_have_probability) {
  TorchGenerator generator(4);
  std::vector<float> row{0.0f, 1.0f, -std::numeric_limits<float>::infinity(), 2.0f};
  softmax(row);
  ExponentialRace race;
  for (int round = 0; round < 200; ++round) {
    CHECK(multinomial(row, generator) != 2);
    race.start(3);
    for (std::size_t i = 0; i < row.size(); ++i) race.run(row[i], static_cast<std::int64_t>(i), generator);
    const auto best = race.finish();
    CHECK(best.size() == 3);
    for (const auto& runner : best) CHECK(runner.index != 2);
  }
  std::vector<float> none(3, -std::numeric_limits<float>::infinity());
  CHECK(throws<std::domain_error>([&] { softmax(none); }));
  CHECK(greedy(none) == -1);
}

TEST(discarding_equals_drawing) {
  for (const std::uint64_t count : {0u, 1u, 623u, 624u, 625u, 5000u}) {
    TorchGenerator drawn(6), discarded(6);
    for (std::uint64_t i = 0; i < count; ++i) drawn.random();
    discarded.discard(count);
    CHECK(drawn.random() == discarded.random());
  }
}

TEST(a_trellis_reads_back_paths) {
  Trellis trellis(3, 2);
  const std::size_t record = trellis.add_record(1);
  const std::byte rows[] = {std::byte{10}, std::byte{11}};
  for (std::size_t step = 0; step < 3; ++step) trellis.keep(record, step, rows, 2);
  const auto a = trellis.append(5, kRoot, trellis.slot(0, 0));
  const auto b = trellis.append(6, a, trellis.slot(1, 1));
  const auto c = trellis.append(7, a, trellis.slot(1, 0));
  std::vector<std::int32_t> tokens{9};
  trellis.tokens(b, tokens);
  CHECK((tokens == std::vector<std::int32_t>{9, 5, 6}));
  std::byte kept[2];
  trellis.record(record, b, kept);
  CHECK(kept[0] == std::byte{10} && kept[1] == std::byte{11});
  CHECK(trellis.agreed(std::vector<std::int32_t>{b, c}) == 1);
  CHECK(trellis.agreed(std::vector<std::int32_t>{b, b}) == 2);
  CHECK(trellis.agreed(std::vector<std::int32_t>{b, kRoot}) == 0);
}

}  // namespace vlrt::test
