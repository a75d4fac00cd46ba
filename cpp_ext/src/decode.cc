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
  if (request.search.uses_beams()) {
    return std::make_unique<BeamSearch>(request.search);
  }
  return std::make_unique<Sequences>(request.search, request.logits.renormalize);
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
      sources_(shape_.max_rows * sizeof(std::int32_t)),
      logits_(shape_.max_rows * shape_.vocabulary * sizeof(float)),
      processed_(shape_.max_rows * shape_.vocabulary * sizeof(float)),
      maxima_(shape_.max_rows * block_count(shape_.vocabulary) * sizeof(float)),
      trellis_(shape_.max_steps, shape_.max_rows),
      moves_(shape_.max_rows) {
  if (shape_.vocabulary == 0 || shape_.max_images == 0 || shape_.max_rows < shape_.max_images ||
      shape_.max_steps == 0 || shape_.max_width == 0) {
    throw std::invalid_argument("a decoder needs a vocabulary, images, rows, steps and a width");
  }
  for (const WindowPattern& pattern : shape_.patterns) {
    plans_.emplace_back(pattern);
    pattern_last_.emplace_back(shape_.max_rows * sizeof(std::int32_t));
    pattern_total_.emplace_back(sizeof(std::int32_t));
  }
  for (const NamedCache& cache : shape_.caches) add_cache(cache);
  for (const NamedRow& state : shape_.recurrent) recurrent_.emplace_back(shape_.max_rows, state.row_bytes);
  for (const NamedShift& shift : shape_.shifts) shifted_.emplace_back(shift, shape_.max_rows);
  for (const NamedRow& memory : shape_.memory) memory_.emplace_back(shape_.max_images, memory.row_bytes);
  for (const NamedRow& noise : shape_.noise) noise_.emplace_back(shape_.max_rows * noise.row_bytes);
  for (const NamedRow& record : shape_.records) {
    records_.emplace_back(shape_.max_rows * record.row_bytes);
    trellis_.add_record(record.row_bytes);
  }
  for (auto* rows : {&filled_, &parents_, &next_filled_, &compact_filled_}) rows->reserve(shape_.max_rows);
  taken_.resize(shape_.max_rows);
  score_rows_.reserve(shape_.max_rows);
}

void Decoder::add_cache(const NamedCache& cache) {
  const KvShape shape{shape_.max_rows, cache.heads, cache.max_length, cache.head_dim, cache.element_bytes};
  if (cache.pattern && cache.max_length < plans_.at(*cache.pattern).positions())
    throw std::invalid_argument("cache `" + cache.name + "` is shorter than its pattern");
  caches_.emplace_back(shape);
  homes_.emplace_back();
  if (cache.pattern) homes_.back().emplace(plans_[*cache.pattern], shape);
}

void Decoder::check(const Request& request) const {
  const SearchOptions& search = request.search;
  const std::size_t prompts = request.prompts.size();
  if (prompts == 0 || prompts > shape_.max_images || prompts % request.lanes() != 0)
    throw std::invalid_argument("number of prompts out of range");
  if (search.num_beams == 0 || search.num_return_sequences == 0 || search.max_new_tokens == 0 ||
      search.max_new_tokens > shape_.max_steps || prompts * sequences_per_image(search) > shape_.max_rows) {
    throw std::invalid_argument("search options do not fit the decoder's buffers");
  }
  if (request.search.uses_beams() && search.num_return_sequences > search.num_beams) {
    throw std::invalid_argument("more sequences to return than beams");
  }
  for (std::size_t i = 0; request.lanes() == 2 && i < prompts; i += 2) {
    if (request.prompts[i].size() != request.prompts[i + 1].size())
      throw std::invalid_argument("a guided image's prompts differ in length");
  }
  for (const Ids& prompt : request.prompts) {
    if (prompt.empty()) throw std::invalid_argument("a prompt is empty");
    for (const std::int32_t id : prompt) {
      if (id < 0 || at(id) >= shape_.vocabulary)
        throw std::invalid_argument("prompt id outside the vocabulary");
    }
  }
  check_lengths(request);
  check_rows(shape_.recurrent, request.recurrent, prompts);
  check_rows(shape_.memory, request.memory, prompts);
}

// Longer prompts than one call takes, and compact caches, advance in step: all rows are at one place.
void Decoder::check_lengths(const Request& request) const {
  const std::size_t first = request.prompts.front().size();
  std::size_t longest = 0;
  for (const Ids& prompt : request.prompts) longest = std::max(longest, prompt.size());
  const bool in_step =
      !plans_.empty() || !shifted_.empty() || (shape_.max_width > 1 && longest > shape_.max_width);
  for (const Ids& prompt : request.prompts) {
    if (in_step && prompt.size() != first) throw std::invalid_argument("prompts differ in length");
    const std::size_t last = request.prefix_length + prompt.size() + request.search.max_new_tokens - 1;
    for (const NamedCache& cache : shape_.caches) {
      if (!cache.pattern && last > cache.max_length)
        throw std::invalid_argument("prompt and new tokens do not fit the cache");
    }
    for (const WindowPlan& plan : plans_) {
      if (request.prefix_length > 0 || last > plan.origin() + plan.cells())
        throw std::invalid_argument("prompt and new tokens do not fit the grid");
      if (std::min(first, shape_.max_width) > plan.origin() + 1)
        throw std::invalid_argument("the first call reaches into the grid");
    }
  }
}

void Decoder::begin(const Request& request) {
  const std::size_t images = request.images();
  lanes_ = request.lanes();
  processors_ = std::make_unique<LogitsProcessors>(request.logits, shape_.vocabulary);
  sampling_.seed(request.seed);
  noise_generator_.seed(request.seed);
  trellis_.clear();
  emitted_.assign(images, 0);
  live_.assign(images, 1);
  rows_per_image_ = 1;
  parents_.clear();
  fill_slots(request);
  searches_.clear();
  for (std::size_t image = 0; image < images; ++image) searches_.push_back(make_search(request));
  for (std::size_t slot = 0; slot < images; ++slot) {
    searches_[at(slots_[slot])]->reset(static_cast<std::int32_t>(slot * lanes_));
  }
}

// Images with longer prompts come first: token by token they start earlier, and rows in use stay a prefix.
void Decoder::fill_slots(const Request& request) {
  const std::size_t images = request.images(), prompts = request.prompts.size();
  slots_.resize(images);
  std::iota(slots_.begin(), slots_.end(), 0);
  std::stable_sort(slots_.begin(), slots_.end(), [&](std::int32_t a, std::int32_t b) {
    return request.prompts[at(a) * lanes_].size() > request.prompts[at(b) * lanes_].size();
  });
  const auto fill = [&](std::byte* rows, std::span<const std::byte> given, std::size_t row_bytes) {
    const std::size_t bytes = lanes_ * row_bytes;
    for (std::size_t slot = 0; slot < images; ++slot) {
      std::memcpy(rows + slot * bytes, given.data() + at(slots_[slot]) * bytes, bytes);
    }
  };
  for (std::size_t i = 0; i < recurrent_.size(); ++i) {
    fill(recurrent_[i].input(), request.recurrent[i], recurrent_[i].row_bytes());
  }
  for (std::size_t i = 0; i < memory_.size(); ++i) {
    fill(memory_[i].data(), request.memory[i], memory_[i].row_bytes());
  }
  filled_.assign(prompts, static_cast<std::int32_t>(request.prefix_length));
}

std::vector<std::vector<Hypothesis>> Decoder::run(const Request& request, const Callbacks& callbacks) {
  const Running running(running_);
  check(request);
  begin(request);
  bool cancel = !prefill(request, callbacks);
  for (std::size_t step = 0; !cancel; ++step) {
    if (request.keep_records) keep_records(step, row_count());
    if (lanes_ == 2) guide(request.guidance_scale);
    choose(request, step);
    stream(callbacks);
    drop_finished_images();
    if (slots_.empty() || (cancel = callbacks.cancelled())) break;
    lay_out_rows();
    fill_tokens();
    call({row_count(), 1, slots_.size() * lanes_}, callbacks);
  }
  std::vector<std::vector<Hypothesis>> results;
  results.reserve(searches_.size());
  for (const auto& search : searches_) results.push_back(gather(*search, request.keep_records));
  return results;
}

void Decoder::keep_records(std::size_t step, std::size_t rows) {
  for (std::size_t i = 0; i < records_.size(); ++i) trellis_.keep(i, step, records_[i].data(), rows);
}

}  // namespace vlrt
