// The autoregressive loop: prefill, step, select, stream, cancel. It knows no model and no engine: it fills
// its buffers and calls back for one forward pass over them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "vlrt/aligned.h"
#include "vlrt/kv_cache.h"
#include "vlrt/logits.h"
#include "vlrt/noise.h"
#include "vlrt/search.h"
#include "vlrt/shifted.h"
#include "vlrt/trellis.h"
#include "vlrt/window.h"

namespace vlrt {

// The model gave no usable scores; the message says at which step.
struct ScoreError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct NamedRow {
  std::string name;
  std::size_t row_bytes;
};

struct NamedCache {
  std::string name;
  std::size_t heads;
  std::size_t max_length;
  std::size_t head_dim;
  std::size_t element_bytes;
  std::optional<std::size_t> pattern = std::nullopt;  // of a compact cache: index into the shape's patterns
};

// What the loop allocates. A row is one live hypothesis; rows of an image lie together. A guided image counts
// as two, one for each of its prompts.
struct LoopShape {
  std::size_t vocabulary = 0;
  std::size_t max_images = 1;
  std::size_t max_rows = 1;
  std::size_t max_steps = 1;  // most new tokens of any run
  std::size_t max_width = 1;  // most prompt tokens that one call of the model takes; 1: a recurrent model.
                              // What is longer (prompts of one length only) follows token by token.
  std::vector<WindowPattern> patterns;
  std::vector<NamedCache> caches;
  std::vector<NamedRow> recurrent;
  std::vector<NamedShift> shifts;
  std::vector<NamedRow> memory;
  std::vector<NamedRow> noise;  // float32 uniforms in [0, 1)
  std::vector<NamedRow> records;
};

// Everything of one run. `recurrent` and `memory` give, for all images in order, the first rows of states and
// of memory; caches may hold `prefix_length` positions of every image that the caller has filled already.
//
// With a guidance scale above 1 every image has two lanes: prompts and initial rows come in pairs,
// conditional and unconditional (prompts of one length), and so do the rows of the model, an image's
// conditional ones before its unconditional ones. Tokens are chosen by u + scale * (c - u) and are the same
// in both lanes.
struct Request {
  SearchOptions search;
  LogitsOptions logits;
  std::uint64_t seed = 0;
  std::vector<Ids> prompts;
  std::vector<std::span<const std::byte>> recurrent;  // in the order of the shape
  std::vector<std::span<const std::byte>> memory;
  std::size_t prefix_length = 0;
  bool keep_records = true;
  float guidance_scale = 1.0f;

  std::size_t lanes() const { return guidance_scale > 1.0f ? 2 : 1; }
  std::size_t images() const { return prompts.size() / lanes(); }
};

struct Hypothesis {
  Ids tokens;  // generated, end id included
  float score = 0.0f;
  float log_probability = 0.0f;
  bool finished = false;
  std::vector<std::vector<std::byte>> records;  // per record of the shape: [tokens, row_bytes]
};

struct StepSize {
  std::size_t rows;
  std::size_t width;
  std::size_t images;  // lanes counted
};

struct Callbacks {
  std::function<void(const StepSize&)> step;
  std::function<void(std::size_t image, std::int32_t token)> on_token;  // may be empty
  std::function<bool()> should_cancel;                                  // may be empty

  bool cancelled() const { return should_cancel && should_cancel(); }
};

// Buffers of a model's inputs and outputs, and the loop over them. One run at a time; a run that throws
// leaves the decoder ready for the next.
class Decoder {
 public:
  explicit Decoder(LoopShape shape);

  // Returns for every image its hypotheses. Tokens are streamed once no candidate disagrees with them. Where
  // `should_cancel` becomes true (asked before every call of the model) what is there is returned.
  std::vector<std::vector<Hypothesis>> run(const Request& request, const Callbacks& callbacks);

  const LoopShape& shape() const { return shape_; }
  std::int64_t* tokens() { return tokens_.as<std::int64_t>(); }              // [rows, width]
  std::int64_t* positions() { return positions_.as<std::int64_t>(); }        // [rows, width]
  std::int32_t* past_lengths() { return past_lengths_.as<std::int32_t>(); }  // [rows] filled before the call
  std::int32_t* new_lengths() { return new_lengths_.as<std::int32_t>(); }    // [rows] tokens of this call
  std::int32_t* last_positions() { return last_positions_.as<std::int32_t>(); }  // [rows] past + new - 1
  std::int32_t* total_length() { return total_length_.as<std::int32_t>(); }      // [1] longest past + new
  float* logits() { return logits_.as<float>(); }                                // [rows, vocabulary]
  // [rows]: which row of the call before each one continues; its own number where there was none.
  std::int32_t* sources() { return sources_.as<std::int32_t>(); }
  std::int32_t* pattern_last(std::size_t index) { return pattern_last_[index].as<std::int32_t>(); }  // [rows]
  std::int32_t* pattern_total(std::size_t index) { return pattern_total_[index].as<std::int32_t>(); }  // [1]
  KvCache& cache(std::size_t index) { return caches_[index]; }
  RecurrentState& recurrent(std::size_t index) { return recurrent_[index]; }
  ShiftedState& shifted(std::size_t index) { return shifted_[index]; }
  ImageMemory& memory(std::size_t index) { return memory_[index]; }
  std::byte* noise(std::size_t index) { return noise_[index].data(); }
  std::byte* record(std::size_t index) { return records_[index].data(); }

 private:
  void check(const Request& request) const;
  void check_lengths(const Request& request) const;
  void add_cache(const NamedCache& cache);
  void begin(const Request& request);
  void fill_slots(const Request& request);
  const Ids& prompt_of(const Request& request, std::size_t row) const;
  // Each is false where it was cancelled.
  bool prefill(const Request& request, const Callbacks& callbacks);
  bool prefill_at_once(const Request& request, const Callbacks& callbacks);
  bool prefill_by_token(const Request& request, const Callbacks& callbacks);
  void keep_rows(std::size_t rows);
  void call(const StepSize& size, const Callbacks& callbacks);
  void fill_lengths(const StepSize& size);
  void fill_pattern_lengths(const StepSize& size);
  void recall_windows(const StepSize& size);
  void store_windows(const StepSize& size);
  void move_caches();
  void keep_records(std::size_t step, std::size_t rows);
  void guide(float scale);
  void choose(const Request& request, std::size_t step);
  void read_scores(const Search& search, std::size_t image, const Request& request, std::size_t step);
  ScoreRow read_row(std::int32_t row, const Request& request, const History& history);
  void stream(const Callbacks& callbacks);
  void emit(std::size_t image, std::int32_t node, std::size_t until, const Callbacks& callbacks);
  void drop_finished_images();
  void lay_out_rows();
  void place_beams(std::size_t slot, std::size_t rows_before);
  void place_lane(std::size_t slot, std::size_t rows_before, std::size_t beams_before);
  void fill_tokens();
  std::vector<Hypothesis> gather(const Search& search, bool with_records) const;
  std::size_t rows_per_slot() const { return rows_per_image_ * lanes_; }
  std::size_t row_count() const { return slots_.size() * rows_per_slot(); }

  LoopShape shape_;
  AlignedBuffer tokens_, positions_, past_lengths_, new_lengths_, last_positions_, total_length_, sources_;
  AlignedBuffer logits_, processed_, maxima_;
  std::vector<WindowPlan> plans_;
  std::vector<AlignedBuffer> pattern_last_, pattern_total_;
  std::vector<KvCache> caches_;
  std::vector<std::optional<WindowHome>> homes_;  // of compact caches
  std::vector<RecurrentState> recurrent_;
  std::vector<ShiftedState> shifted_;
  std::vector<ImageMemory> memory_;
  std::vector<AlignedBuffer> noise_;
  std::vector<AlignedBuffer> records_;
  Trellis trellis_;
  RowMoves moves_;
  TorchGenerator sampling_;
  TorchGenerator noise_generator_;

  std::unique_ptr<LogitsProcessors> processors_;
  std::vector<std::unique_ptr<Search>> searches_;  // by original image
  std::vector<std::int32_t> slots_;                // the image of each slot; slots change as images finish
  std::vector<char> live_;                         // by original image
  std::vector<std::size_t> emitted_;               // tokens streamed, by original image
  std::size_t rows_per_image_ = 1;                 // of one lane
  std::size_t lanes_ = 1;
  std::vector<std::int32_t> filled_;  // positions filled per row
  std::vector<std::int32_t> parents_;
  std::vector<std::int32_t> next_filled_;
  std::vector<std::int32_t> compact_filled_;
  std::vector<char> taken_;
  std::vector<ScoreRow> score_rows_;
  std::vector<std::int32_t> nodes_;
  Ids history_;
  std::atomic_flag running_ = ATOMIC_FLAG_INIT;
};

}  // namespace vlrt
