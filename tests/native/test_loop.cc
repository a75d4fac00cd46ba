// The whole loop on a model whose cache must hold exactly the tokens of its row, under random options.
#include <algorithm>
#include <cstring>
#include <map>
#include <thread>

#include "check.h"
#include "vlrt/decode.h"

namespace vlrt::test {

namespace {

constexpr std::size_t kVocabulary = 70;
constexpr std::size_t kSteps = 12;
constexpr std::size_t kPositions = 20;

float score_of(std::uint32_t history, std::size_t token) {
  std::uint32_t mixed = (history ^ static_cast<std::uint32_t>(token * 2654435761u)) * 2246822519u;
  mixed = (mixed ^ (mixed >> 13)) * 3266489917u;
  return static_cast<float>(mixed >> 8) / static_cast<float>(1u << 24) * 8.0f;
}

std::uint32_t mix(std::uint32_t history, std::int64_t token) {
  return (history * 31u + static_cast<std::uint32_t>(token) + 1u) * 2654435761u;
}

LoopShape shape_of(std::size_t images, std::size_t rows, std::size_t width) {
  LoopShape shape;
  shape.vocabulary = kVocabulary;
  shape.max_images = images;
  shape.max_rows = rows;
  shape.max_steps = kSteps;
  shape.max_width = width;
  shape.caches = {{"tokens", 1, kPositions, 1, sizeof(std::int32_t)}};
  shape.recurrent = {{"hash", sizeof(std::uint32_t)}};
  shape.memory = {{"image", sizeof(std::uint32_t)}};
  shape.noise = {{"u", 2 * sizeof(float)}};
  shape.records = {{"hash", sizeof(std::uint32_t)}};
  return shape;
}

// Scores depend on a hash of all tokens, which is kept twice: as a recurrent state, and from the cache.
void step(Decoder& d, const StepSize& size) {
  auto* cache = reinterpret_cast<std::int32_t*>(d.cache(0).data());
  auto* in = reinterpret_cast<std::uint32_t*>(d.recurrent(0).input());
  auto* out = reinterpret_cast<std::uint32_t*>(d.recurrent(0).output());
  auto* memory = reinterpret_cast<std::uint32_t*>(d.memory(0).data());
  auto* record = reinterpret_cast<std::uint32_t*>(d.record(0));
  for (std::size_t row = 0; row < size.rows; ++row) {
    std::uint32_t hash = in[row];
    for (std::int32_t i = 0; i < d.new_lengths()[row]; ++i) {
      const std::int64_t token = d.tokens()[row * size.width + static_cast<std::size_t>(i)];
      cache[row * kPositions + static_cast<std::size_t>(d.past_lengths()[row] + i)] =
          static_cast<std::int32_t>(token);
      hash = mix(hash, token);
    }
    std::uint32_t again = memory[row / (size.rows / size.images)];
    for (std::int32_t i = 0; i <= d.last_positions()[row]; ++i) {
      again = mix(again, cache[row * kPositions + static_cast<std::size_t>(i)]);
    }
    out[row] = again;
    // Rows without a beam hold any state and are never read; in all others the two must agree.
    record[row] = hash == again ? again : ~again;
    for (std::size_t token = 0; token < kVocabulary; ++token) {
      d.logits()[row * kVocabulary + token] = score_of(again, token);
    }
  }
}

struct Run {
  Request request;
  std::vector<std::uint32_t> images;

  void point() {
    const auto bytes = std::as_bytes(std::span(images));
    request.recurrent = {bytes};
    request.memory = {bytes};
  }
};

Run random_run(TorchGenerator& generator, std::size_t images, std::size_t longest) {
  Run run;
  SearchOptions& search = run.request.search;
  search.rule = generator.random() % 3 == 0 ? Rule::kClassic : Rule::kHf;
  search.num_beams = 1 + generator.random() % 5;
  search.do_sample = search.rule == Rule::kHf && generator.random() % 3 == 0;
  const bool samples = search.do_sample && search.num_beams == 1;
  search.num_return_sequences =
      samples ? 1 + generator.random() % 4 : 1 + generator.random() % search.num_beams;
  search.max_new_tokens = 1 + generator.random() % kSteps;
  search.length_penalty = static_cast<float>(generator.random() % 3) - 0.5f;
  search.early_stopping = static_cast<EarlyStopping>(generator.random() % 3);
  search.end_ids = {1, 2, 3, 4};
  LogitsOptions& logits = run.request.logits;
  logits.suppress_tokens = {0};
  logits.end_ids = search.end_ids;
  logits.max_new_tokens = search.max_new_tokens;
  if (generator.random() % 2 == 0) logits.repetition_penalty = 1.3f;
  if (generator.random() % 2 == 0) logits.no_repeat_ngram_size = 2;
  logits.warp = search.do_sample;
  logits.top_k = 20;
  logits.min_tokens_to_keep = 5;
  run.request.seed = generator.random();
  for (std::size_t image = 0; image < images; ++image) {
    Ids prompt(1 + generator.random() % longest);
    for (std::int32_t& id : prompt) id = static_cast<std::int32_t>(5 + generator.random() % 60);
    run.request.prompts.push_back(prompt);
    run.images.push_back(generator.random());
  }
  return run;
}

// The words and the recorded hashes must tell the same story.
void check_hypothesis(const Hypothesis& hypothesis, const Run& run, std::size_t image) {
  std::uint32_t hash = run.images[image];
  for (const std::int32_t token : run.request.prompts[image]) hash = mix(hash, token);
  CHECK(!hypothesis.tokens.empty());
  for (std::size_t i = 0; i < hypothesis.tokens.size(); ++i) {
    std::uint32_t recorded;
    std::memcpy(&recorded, hypothesis.records[0].data() + i * sizeof recorded, sizeof recorded);
    CHECK(recorded == hash);
    CHECK(hypothesis.tokens[i] != 0);
    hash = mix(hash, hypothesis.tokens[i]);
  }
  const bool ended = hypothesis.tokens.back() >= 1 && hypothesis.tokens.back() <= 4;
  CHECK(hypothesis.finished == ended);
  CHECK(ended || hypothesis.tokens.size() == run.request.search.max_new_tokens);
}

void run_randomly(std::uint64_t seed, int rounds, std::size_t width) {
  TorchGenerator generator(seed);
  Decoder decoder(shape_of(4, 20, width));
  for (int round = 0; round < rounds; ++round) {
    Run run = random_run(generator, 1 + generator.random() % 4, 4);
    run.point();
    std::map<std::size_t, Ids> streamed;
    Callbacks callbacks;
    callbacks.step = [&](const StepSize& size) { step(decoder, size); };
    callbacks.on_token = [&](std::size_t image, std::int32_t token) { streamed[image].push_back(token); };
    const auto results = decoder.run(run.request, callbacks);
    CHECK(results.size() == run.images.size());
    for (std::size_t image = 0; image < results.size(); ++image) {
      CHECK(!results[image].empty());
      for (const Hypothesis& hypothesis : results[image]) check_hypothesis(hypothesis, run, image);
      CHECK(streamed[image] == results[image][0].tokens);
    }
  }
}

}  // namespace

TEST(loop_with_prompts_at_once) {
  // All columns of the recurrent twin are read in one call too, so both states hold.
  run_randomly(11, 400, 4);
}

TEST(loop_with_prompts_token_by_token) {
  run_randomly(12, 400, 1);
}

TEST(threads_have_their_own_loops) {
  std::vector<std::thread> threads;
  std::vector<std::exception_ptr> errors(3);
  for (std::size_t i = 0; i < errors.size(); ++i) {
    threads.emplace_back([&errors, i] {
      try {
        run_randomly(20 + i, 60, 4);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

TEST(failing_and_cancelled_runs_leave_the_decoder_usable) {
  TorchGenerator generator(13);
  Decoder decoder(shape_of(4, 20, 4));
  for (int round = 0; round < 200; ++round) {
    Run run = random_run(generator, 3, 4);
    run.point();
    std::uint32_t left = generator.random() % 8;
    Callbacks callbacks;
    callbacks.step = [&](const StepSize& size) {
      if (round % 2 == 0 && left-- == 0) throw std::runtime_error("the engine failed");
      step(decoder, size);
    };
    callbacks.should_cancel = [&] { return round % 2 == 1 && left-- == 0; };
    try {
      decoder.run(run.request, callbacks);
    } catch (const std::runtime_error& error) {
      CHECK(std::string(error.what()) == "the engine failed");
    }
  }
}

TEST(what_does_not_fit_is_refused) {
  Decoder decoder(shape_of(2, 6, 3));
  const Callbacks callbacks{[&](const StepSize& size) { step(decoder, size); }, {}, {}};
  const auto refused = [&](auto change) {
    TorchGenerator generator(14);
    Run run = random_run(generator, 2, 3);
    run.request.search = SearchOptions{};
    run.request.search.num_beams = 3;
    change(run);
    run.point();
    return throws<std::invalid_argument>([&] { decoder.run(run.request, callbacks); });
  };
  CHECK(!refused([](Run&) {}));
  CHECK(refused([](Run& run) { run.request.search.num_beams = 4; }));
  CHECK(refused([](Run& run) { run.request.search.num_beams = 0; }));
  CHECK(refused([](Run& run) { run.request.search.num_return_sequences = 4; }));
  CHECK(refused([](Run& run) { run.request.search.max_new_tokens = kSteps + 1; }));
  CHECK(refused([](Run& run) { run.request.prompts[0].clear(); }));
  CHECK(refused([](Run& run) { run.request.prompts[0] = {1, 2, 3, 4}; }));
  CHECK(refused([](Run& run) { run.request.prompts[1] = {static_cast<std::int32_t>(kVocabulary)}; }));
  CHECK(refused([](Run& run) { run.request.prefix_length = kPositions; }));
  CHECK(refused([](Run& run) { run.images.pop_back(); }));
  CHECK(refused([](Run& run) { run.request.logits.suppress_tokens = {-1}; }));
}

}  // namespace vlrt::test
