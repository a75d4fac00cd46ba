#include "vlrt/decode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "vlrt/beam_search.h"
#include "vlrt/sequences.h"

namespace vlrt {

namespace {

std::size_t at(std::int32_t index) {
  return static_cast<std::size_t>(index);
}

// Held while a decoder runs: its buffers serve one run at a time.
class Running {
 public:
  explicit Running(std::atomic_flag& flag) : flag_(flag) {
    if (flag_.test_and_set()) throw std::logic_error("this decoder is running already");
  }
  ~Running() { flag_.clear(); }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  std::atomic_flag& flag_;
};

std::size_t sequences_per_image(const SearchOptions& search) {
  return search.num_beams > 1 ? search.num_beams : search.num_return_sequences;
}

std::unique_ptr<Search> make_search(const Request& request) {
  if (request.search.num_beams > 1 || request.search.rule == Rule::kClassic) {
    return std::make_unique<BeamSearch>(request.search);
  }
  return std::make_unique<Sequences>(request.search, request.logits.renormalize);
}

bool is_beam_search(const Request& request) {
  return request.search.num_beams > 1 || request.search.rule == Rule::kClassic;
}

void check_rows(const std::vector<NamedRow>& specs, const std::vector<std::span<const std::byte>>& given,
                std::size_t images) {
  if (specs.size() != given.size()) throw std::invalid_argument("initial values are missing");
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (given[i].size() != images * specs[i].row_bytes) {
      throw std::invalid_argument("initial value of `" + specs[i].name + "` has the wrong size");
    }
  }
}

}  // namespace

Decoder::Decoder(LoopShape shape)
    : shape_(std::move(shape)),
      tokens_(shape_.max_rows * shape_.max_width * sizeof(std::int64_t)),
      positions_(shape_.max_rows * shape_.max_width * sizeof(std::int64_t)),
      past_lengths_(shape_.max_rows * sizeof(std::int32_t)),
      new_lengths_(shape_.max_rows * sizeof(std::int32_t)),
      last_positions_(shape_.max_rows * sizeof(std::int32_t)),
      total_length_(sizeof(std::int32_t)),
      logits_(shape_.max_rows * shape_.vocabulary * sizeof(float)),
      processed_(shape_.max_rows * shape_.vocabulary * sizeof(float)),
      maxima_(shape_.max_rows * block_count(shape_.vocabulary) * sizeof(float)),
      trellis_(shape_.max_steps, shape_.max_rows),
      moves_(shape_.max_rows) {
  if (shape_.vocabulary == 0 || shape_.max_images == 0 || shape_.max_rows < shape_.max_images ||
      shape_.max_steps == 0 || shape_.max_width == 0) {
    throw std::invalid_argument("a decoder needs a vocabulary, images, rows, steps and a width");
  }
  for (const NamedCache& c : shape_.caches) {
    caches_.emplace_back(KvShape{shape_.max_rows, c.heads, c.max_length, c.head_dim, c.element_bytes});
  }
  for (const NamedRow& state : shape_.recurrent) recurrent_.emplace_back(shape_.max_rows, state.row_bytes);
  for (const NamedRow& memory : shape_.memory) memory_.emplace_back(shape_.max_images, memory.row_bytes);
  for (const NamedRow& noise : shape_.noise) noise_.emplace_back(shape_.max_rows * noise.row_bytes);
  for (const NamedRow& record : shape_.records) {
    records_.emplace_back(shape_.max_rows * record.row_bytes);
    trellis_.add_record(record.row_bytes);
  }
  for (auto* rows : {&filled_, &parents_, &next_filled_}) rows->reserve(shape_.max_rows);
  taken_.resize(shape_.max_rows);
  score_rows_.reserve(shape_.max_rows);
}

void Decoder::check(const Request& request) const {
  const SearchOptions& search = request.search;
  const std::size_t images = request.prompts.size();
  if (images == 0 || images > shape_.max_images)
    throw std::invalid_argument("number of prompts out of range");
  if (search.num_beams == 0 || search.num_return_sequences == 0 || search.max_new_tokens == 0 ||
      search.max_new_tokens > shape_.max_steps || images * sequences_per_image(search) > shape_.max_rows) {
    throw std::invalid_argument("search options do not fit the decoder's buffers");
  }
  if (is_beam_search(request) && search.num_return_sequences > search.num_beams) {
    throw std::invalid_argument("more sequences to return than beams");
  }
  for (const Ids& prompt : request.prompts) {
    if (prompt.empty()) throw std::invalid_argument("a prompt is empty");
    for (const std::int32_t id : prompt) {
      if (id < 0 || at(id) >= shape_.vocabulary)
        throw std::invalid_argument("prompt id outside the vocabulary");
    }
    if (shape_.max_width > 1 && prompt.size() > shape_.max_width) {
      throw std::invalid_argument("a prompt is wider than the decoder's buffers");
    }
    for (const NamedCache& cache : shape_.caches) {
      if (request.prefix_length + prompt.size() + search.max_new_tokens - 1 > cache.max_length) {
        throw std::invalid_argument("prompt and new tokens do not fit the cache");
      }
    }
  }
  check_rows(shape_.recurrent, request.recurrent, images);
  check_rows(shape_.memory, request.memory, images);
}

void Decoder::begin(const Request& request) {
  const std::size_t images = request.prompts.size();
  processors_ = std::make_unique<LogitsProcessors>(request.logits, shape_.vocabulary);
  sampling_.seed(request.seed);
  noise_generator_.seed(request.seed);
  trellis_.clear();
  emitted_.assign(images, 0);
  live_.assign(images, 1);
  rows_per_image_ = 1;
  fill_slots(request);
  searches_.clear();
  for (std::size_t image = 0; image < images; ++image) searches_.push_back(make_search(request));
  for (std::size_t slot = 0; slot < images; ++slot) {
    searches_[at(slots_[slot])]->reset(static_cast<std::int32_t>(slot));
  }
}

// Images with longer prompts come first: token by token they start earlier, and rows in use stay a prefix.
void Decoder::fill_slots(const Request& request) {
  const std::size_t images = request.prompts.size();
  slots_.resize(images);
  std::iota(slots_.begin(), slots_.end(), 0);
  std::stable_sort(slots_.begin(), slots_.end(), [&](std::int32_t a, std::int32_t b) {
    return request.prompts[at(a)].size() > request.prompts[at(b)].size();
  });
  const auto fill = [&](std::byte* rows, std::span<const std::byte> given, std::size_t row_bytes) {
    for (std::size_t slot = 0; slot < images; ++slot) {
      std::memcpy(rows + slot * row_bytes, given.data() + at(slots_[slot]) * row_bytes, row_bytes);
    }
  };
  for (std::size_t i = 0; i < recurrent_.size(); ++i) {
    fill(recurrent_[i].input(), request.recurrent[i], recurrent_[i].row_bytes());
  }
  for (std::size_t i = 0; i < memory_.size(); ++i) {
    fill(memory_[i].data(), request.memory[i], memory_[i].row_bytes());
  }
  filled_.assign(images, static_cast<std::int32_t>(request.prefix_length));
}

std::vector<std::vector<Hypothesis>> Decoder::run(const Request& request, const Callbacks& callbacks) {
  const Running running(running_);
  check(request);
  begin(request);
  const auto cancelled = [&] { return callbacks.should_cancel && callbacks.should_cancel(); };
  bool cancel = cancelled();
  if (!cancel) prefill(request, callbacks);
  for (std::size_t step = 0; !cancel; ++step) {
    if (request.keep_records) keep_records(step, row_count());
    choose(request, step);
    stream(callbacks);
    drop_finished_images();
    if (slots_.empty() || (cancel = cancelled())) break;
    lay_out_rows();
    fill_tokens();
    call({row_count(), 1, slots_.size()}, callbacks);
  }
  std::vector<std::vector<Hypothesis>> results;
  results.reserve(searches_.size());
  for (const auto& search : searches_) results.push_back(gather(*search, request.keep_records));
  return results;
}

void Decoder::prefill(const Request& request, const Callbacks& callbacks) {
  if (shape_.max_width == 1) return prefill_by_token(request, callbacks);
  prefill_at_once(request, callbacks);
}

// Prompts stand at the left; shorter ones are filled up with their last token, which no valid position sees.
void Decoder::prefill_at_once(const Request& request, const Callbacks& callbacks) {
  const std::size_t width = request.prompts[at(slots_.front())].size();
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    const Ids& prompt = request.prompts[at(slots_[slot])];
    for (std::size_t i = 0; i < width; ++i) {
      tokens()[slot * width + i] = prompt[std::min(i, prompt.size() - 1)];
    }
    new_lengths()[slot] = static_cast<std::int32_t>(prompt.size());
  }
  call({slots_.size(), width, slots_.size()}, callbacks);
}

// A model that takes one token a call reads prompts right-aligned: all rows reach their last token together.
void Decoder::prefill_by_token(const Request& request, const Callbacks& callbacks) {
  const std::size_t longest = request.prompts[at(slots_.front())].size();
  for (std::size_t place = 0; place < longest; ++place) {
    std::size_t rows = 0;
    for (; rows < slots_.size(); ++rows) {
      const Ids& prompt = request.prompts[at(slots_[rows])];
      const std::size_t late = longest - prompt.size();
      if (place < late) break;
      tokens()[rows] = prompt[place - late];
      new_lengths()[rows] = 1;
    }
    call({rows, 1, rows}, callbacks);
    if (place + 1 == longest) break;
    parents_.resize(rows);
    std::iota(parents_.begin(), parents_.end(), 0);
    for (RecurrentState& state : recurrent_) state.select(parents_);
  }
}

void Decoder::call(const StepSize& size, const Callbacks& callbacks) {
  fill_lengths(size);
  for (std::size_t i = 0; i < noise_.size(); ++i) {
    const std::size_t count = size.rows * shape_.noise[i].row_bytes / sizeof(float);
    noise_generator_.rand(std::span(noise_[i].as<float>(), count));
  }
  callbacks.step(size);
  for (std::size_t row = 0; row < size.rows; ++row) filled_[row] += new_lengths()[row];
}

void Decoder::fill_lengths(const StepSize& size) {
  std::int32_t longest = 0;
  for (std::size_t row = 0; row < size.rows; ++row) {
    const std::int32_t past = filled_[row], total = past + new_lengths()[row];
    past_lengths()[row] = past;
    last_positions()[row] = total - 1;
    longest = std::max(longest, total);
    for (std::size_t i = 0; i < size.width; ++i) {
      positions()[row * size.width + i] = past + static_cast<std::int64_t>(i);
    }
  }
  *total_length() = longest;
}

void Decoder::keep_records(std::size_t step, std::size_t rows) {
  for (std::size_t i = 0; i < records_.size(); ++i) trellis_.keep(i, step, records_[i].data(), rows);
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
  const Ids& prompt = request.prompts[image];
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
  if (!is_beam_search(request)) {
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

// The last slot takes the place of a finished one, so that at most one image moves for each.
void Decoder::drop_finished_images() {
  for (std::size_t slot = 0; slot < slots_.size();) {
    const std::size_t image = at(slots_[slot]);
    if (!searches_[image]->done()) {
      ++slot;
      continue;
    }
    live_[image] = 0;
    const std::size_t last = slots_.size() - 1;
    for (ImageMemory& memory : memory_) memory.move(last, slot);
    slots_[slot] = slots_[last];
    slots_.pop_back();
  }
}

// Every live image gets as many rows as the widest needs; beams stay in their parent's row where they can.
void Decoder::lay_out_rows() {
  const std::size_t rows_before = filled_.size();
  rows_per_image_ = 1;
  for (const std::int32_t image : slots_) {
    rows_per_image_ = std::max(rows_per_image_, searches_[at(image)]->beams().size());
  }
  parents_.resize(row_count());
  std::fill(taken_.begin(), taken_.end(), char{0});
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) place_beams(slot, rows_before);
  const auto moves = moves_.plan(parents_);
  for (KvCache& cache : caches_) cache.apply(moves, filled_);
  for (RecurrentState& state : recurrent_) state.select(parents_);
  next_filled_.resize(row_count());
  for (std::size_t row = 0; row < row_count(); ++row) next_filled_[row] = filled_[at(parents_[row])];
  filled_.swap(next_filled_);
}

void Decoder::place_beams(std::size_t slot, std::size_t rows_before) {
  const std::size_t begin = slot * rows_per_image_, end = begin + rows_per_image_;
  const std::span<Beam> beams = searches_[at(slots_[slot])]->beams();
  const std::int32_t any_parent = beams.front().row;
  // First those that may stay, marked by a row of their own; the rest fill what is free.
  for (Beam& beam : beams) {
    const std::size_t parent = at(beam.row);
    if (parent < begin || parent >= end || taken_[parent] != 0) continue;
    taken_[parent] = 1;
    parents_[parent] = beam.row;
    beam.row = -1 - beam.row;
  }
  std::size_t free = begin;
  for (Beam& beam : beams) {
    if (beam.row < 0) {
      beam.row = -1 - beam.row;
      continue;
    }
    while (taken_[free] != 0) ++free;
    taken_[free] = 1;
    parents_[free] = beam.row;
    beam.row = static_cast<std::int32_t>(free);
  }
  // Rows without a beam still run; whatever state they hold must only be a valid one.
  for (std::size_t row = begin; row < end; ++row) {
    if (taken_[row] == 0) parents_[row] = row < rows_before ? static_cast<std::int32_t>(row) : any_parent;
  }
}

void Decoder::fill_tokens() {
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    const std::span<const Beam> beams = std::as_const(*searches_[at(slots_[slot])]).beams();
    for (std::size_t row = slot * rows_per_image_; row < (slot + 1) * rows_per_image_; ++row) {
      tokens()[row] = beams.front().token;
      new_lengths()[row] = 1;
    }
    for (const Beam& beam : beams) tokens()[beam.row] = beam.token;
  }
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
