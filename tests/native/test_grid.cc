// Compact caches, shifted states and guided lanes: at every call each row must find exactly what its own full
// cache says, under random patterns and random options.
#include <algorithm>
#include <cstring>

#include "check.h"
#include "vlrt/decode.h"

namespace vlrt::test {

namespace {

constexpr std::size_t kVocabulary = 17, kText = 3, kColumns = 4, kCells = 14, kPositions = kText + kCells;
constexpr std::size_t kRows = 24, kImages = 4;

WindowPattern random_pattern(TorchGenerator& generator) {
  WindowPattern pattern{"pattern", kText, {}};
  for (std::size_t cell = 0; cell < kCells; ++cell) {
    pattern.visible.emplace_back();
    for (std::size_t earlier = 0; earlier < cell; ++earlier) {
      if (generator.random() % 3 == 0) pattern.visible.back().push_back(static_cast<std::int32_t>(earlier));
    }
  }
  return pattern;
}

LoopShape shape_of(const WindowPattern& pattern, std::size_t width) {
  LoopShape shape;
  shape.vocabulary = kVocabulary;
  shape.max_images = kImages;
  shape.max_rows = kRows;
  shape.max_steps = kCells;
  shape.max_width = width;
  shape.patterns = {pattern};
  shape.caches = {{"full", 1, kPositions, 1, sizeof(std::int32_t)},
                  {"compact", 2, WindowPlan(pattern).positions(), 1, sizeof(std::int32_t), 0}};
  shape.shifts = {{"shift", 2 * sizeof(std::int32_t), kText, kColumns}};
  return shape;
}

// What stands in a cache for a token at a position.
std::int32_t entry(std::int64_t token, std::int64_t position) {
  return static_cast<std::int32_t>(position * 1000 + token + 1);
}

class Model {
 public:
  Model(Decoder& decoder, WindowPattern pattern) : decoder_(decoder), pattern_(std::move(pattern)) {}

  void step(const StepSize& size) {
    for (std::size_t row = 0; row < size.rows; ++row) {
      for (std::size_t i = 0; i < size.width; ++i) write(row, i, size.width);
      check_row(row);
      score(row);
    }
  }

 private:
  std::int32_t* full(std::size_t row) {
    return reinterpret_cast<std::int32_t*>(decoder_.cache(0).data()) + row * kPositions;
  }
  std::int32_t* compact(std::size_t row, std::size_t head) {
    const std::size_t length = decoder_.cache(1).shape().max_length;
    return reinterpret_cast<std::int32_t*>(decoder_.cache(1).data()) + (row * 2 + head) * length;
  }

  void write(std::size_t row, std::size_t i, std::size_t width) {
    const std::int64_t token = decoder_.tokens()[row * width + i],
                       position = decoder_.positions()[row * width + i];
    const auto slot = static_cast<std::size_t>(decoder_.pattern_last(0)[row]) + 1 + i - width;
    full(row)[position] = entry(token, position);
    for (std::size_t head = 0; head < 2; ++head)
      compact(row, head)[slot] = entry(token, position) + static_cast<std::int32_t>(head);
  }

  void check_row(std::size_t row) {
    const auto last = static_cast<std::size_t>(decoder_.last_positions()[row]);
    std::vector<std::int32_t> expected(full(row), full(row) + std::min(last + 1, kText));
    std::int32_t above = 0, left = 0;
    if (last >= kText) {
      const std::size_t cell = last - kText;
      for (const std::int32_t seen : pattern_.visible[cell]) {
        expected.push_back(full(row)[kText + static_cast<std::size_t>(seen)]);
      }
      expected.push_back(full(row)[last]);
      if (cell >= kColumns) above = full(row)[last - kColumns];
      if (cell % kColumns != 0) left = full(row)[last - 1];
    }
    std::sort(expected.begin(), expected.end());
    for (std::size_t head = 0; head < 2; ++head) {
      const std::int32_t* here = compact(row, head);
      std::vector<std::int32_t> found(here, here + decoder_.pattern_last(0)[row] + 1);
      for (std::int32_t& value : found) value -= static_cast<std::int32_t>(head);
      std::sort(found.begin(), found.end());
      CHECK(found == expected);
    }
    CHECK(*decoder_.pattern_total(0) == decoder_.pattern_last(0)[row] + 1);
    std::int32_t shifted[2];
    std::memcpy(shifted, decoder_.shifted(0).input() + row * sizeof shifted, sizeof shifted);
    CHECK(shifted[0] == above);
    CHECK(shifted[1] == left);
    const std::int32_t mine[2] = {full(row)[last], full(row)[last]};
    std::memcpy(decoder_.shifted(0).output() + row * sizeof mine, mine, sizeof mine);
  }

  void score(std::size_t row) {
    std::uint32_t hash = 17;
    for (std::int32_t i = 0; i <= decoder_.last_positions()[row]; ++i) {
      hash = (hash ^ static_cast<std::uint32_t>(full(row)[i])) * 2654435761u;
    }
    for (std::size_t token = 0; token < kVocabulary; ++token) {
      hash = hash * 1664525u + 1013904223u;
      decoder_.logits()[row * kVocabulary + token] = static_cast<float>(hash >> 8) / (1u << 22);
    }
  }

  Decoder& decoder_;
  WindowPattern pattern_;
};

Request random_request(TorchGenerator& generator) {
  Request request;
  request.guidance_scale = generator.random() % 2 == 0 ? 1.0f : 3.0f;
  const std::size_t given = generator.random() % 6;
  const std::size_t prompts = request.lanes() * (1 + generator.random() % 2);
  for (std::size_t i = 0; i < prompts; ++i) {
    Ids prompt(kText + given);
    for (std::int32_t& id : prompt) id = static_cast<std::int32_t>(generator.random() % kVocabulary);
    request.prompts.push_back(prompt);
  }
  request.search.do_sample = generator.random() % 2 == 0;
  request.search.num_return_sequences = 1 + generator.random() % 5;
  request.search.num_beams = request.search.do_sample ? 1 : request.search.num_return_sequences;
  request.search.max_new_tokens = kCells - given;
  request.search.end_ids = {1, 2};
  request.seed = generator.random();
  return request;
}

}  // namespace

TEST(compact_caches_hold_what_is_seen) {
  TorchGenerator generator(31);
  for (int round = 0; round < 150; ++round) {
    const WindowPattern pattern = random_pattern(generator);
    Decoder decoder(shape_of(pattern, kText + generator.random() % 2));
    Model model(decoder, pattern);
    for (int again = 0; again < 3; ++again) {
      const Request request = random_request(generator);
      const auto results = decoder.run(request, {[&](const StepSize& size) { model.step(size); }, {}, {}});
      CHECK(results.size() == request.images());
      for (const auto& image : results) CHECK(image.size() == request.search.num_return_sequences);
    }
  }
}

TEST(patterns_that_look_ahead_are_refused) {
  CHECK(throws<std::invalid_argument>([] { WindowPlan({"p", 1, {{}, {1}}}); }));
  CHECK(throws<std::invalid_argument>([] { WindowPlan({"p", 1, {{}, {0}, {1, 0}}}); }));
  CHECK(throws<std::invalid_argument>([] { WindowPlan({"p", 1, {{}, {-1}}}); }));
  CHECK(WindowPlan({"p", 2, {{}, {0}, {1}, {0}}}).homes() == 1);
}

}  // namespace vlrt::test
