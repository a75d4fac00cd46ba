// Calls of the model: prompts first, then one token a row; what a call reads and leaves besides logits.
#include <algorithm>
#include <numeric>

#include "vlrt/decode.h"

namespace vlrt {

namespace {

std::size_t at(std::int32_t index) {
  return static_cast<std::size_t>(index);
}

}  // namespace

// While prompts are read every lane of an image is one row.
const Ids& Decoder::prompt_of(const Request& request, std::size_t row) const {
  return request.prompts[at(slots_[row / lanes_]) * lanes_ + row % lanes_];
}

bool Decoder::prefill(const Request& request, const Callbacks& callbacks) {
  if (callbacks.cancelled()) return false;
  if (shape_.max_width == 1) return prefill_by_token(request, callbacks);
  return prefill_at_once(request, callbacks);
}

// Prompts stand at the left; shorter ones are filled up with their last token, which no valid position sees.
bool Decoder::prefill_at_once(const Request& request, const Callbacks& callbacks) {
  const std::size_t rows = row_count(), longest = prompt_of(request, 0).size();
  const std::size_t width = std::min(longest, shape_.max_width);
  for (std::size_t row = 0; row < rows; ++row) {
    const Ids& prompt = prompt_of(request, row);
    for (std::size_t i = 0; i < width; ++i) {
      tokens()[row * width + i] = prompt[std::min(i, prompt.size() - 1)];
    }
    new_lengths()[row] = static_cast<std::int32_t>(std::min(prompt.size(), width));
  }
  call({rows, width, rows}, callbacks);
  for (std::size_t place = width; place < longest; ++place) {
    if (callbacks.cancelled()) return false;
    keep_rows(rows);
    for (std::size_t row = 0; row < rows; ++row) {
      tokens()[row] = prompt_of(request, row)[place];
      new_lengths()[row] = 1;
    }
    call({rows, 1, rows}, callbacks);
  }
  return true;
}

// A model that takes one token a call reads prompts right-aligned: all rows reach their last token together.
bool Decoder::prefill_by_token(const Request& request, const Callbacks& callbacks) {
  const std::size_t longest = prompt_of(request, 0).size();
  for (std::size_t place = 0; place < longest; ++place) {
    std::size_t rows = 0;
    for (; rows < row_count(); ++rows) {
      const Ids& prompt = prompt_of(request, rows);
      const std::size_t late = longest - prompt.size();
      if (place < late) break;
      tokens()[rows] = prompt[place - late];
      new_lengths()[rows] = 1;
    }
    if (place > 0 && callbacks.cancelled()) return false;
    call({rows, 1, rows}, callbacks);
    if (place + 1 < longest) keep_rows(rows);
  }
  return true;
}

void Decoder::keep_rows(std::size_t rows) {
  parents_.resize(rows);
  std::iota(parents_.begin(), parents_.end(), 0);
  for (RecurrentState& state : recurrent_) state.select(parents_);
}

void Decoder::call(const StepSize& size, const Callbacks& callbacks) {
  fill_lengths(size);
  if (!plans_.empty()) {
    fill_pattern_lengths(size);
    recall_windows(size);
  }
  const std::size_t first = at(past_lengths()[0]), last = at(last_positions()[0]);
  for (ShiftedState& state : shifted_) state.recall(first, size.rows);
  for (std::size_t i = 0; i < noise_.size(); ++i) {
    const std::size_t count = size.rows * shape_.noise[i].row_bytes / sizeof(float);
    noise_generator_.rand(std::span(noise_[i].as<float>(), count));
  }
  callbacks.step(size);
  for (std::size_t row = 0; row < size.rows; ++row) filled_[row] += new_lengths()[row];
  if (!plans_.empty()) store_windows(size);
  for (ShiftedState& state : shifted_) state.store(last, size.rows);
}

void Decoder::fill_lengths(const StepSize& size) {
  std::int32_t longest = 0;
  for (std::size_t row = 0; row < size.rows; ++row) {
    const std::int32_t past = filled_[row], total = past + new_lengths()[row];
    past_lengths()[row] = past;
    sources()[row] = row < parents_.size() ? parents_[row] : static_cast<std::int32_t>(row);
    last_positions()[row] = total - 1;
    longest = std::max(longest, total);
    for (std::size_t i = 0; i < size.width; ++i) {
      positions()[row * size.width + i] = past + static_cast<std::int64_t>(i);
    }
  }
  *total_length() = longest;
}

// All rows are at the same place.
void Decoder::fill_pattern_lengths(const StepSize& size) {
  for (std::size_t i = 0; i < plans_.size(); ++i) {
    const auto total = static_cast<std::int32_t>(plans_[i].filled(at(*total_length())));
    std::fill_n(pattern_last(i), size.rows, total - 1);
    *pattern_total(i) = total;
  }
}

void Decoder::recall_windows(const StepSize& size) {
  const std::size_t position = at(past_lengths()[0]);
  for (std::size_t i = 0; i < caches_.size(); ++i) {
    if (!homes_[i]) continue;
    const WindowPlan& plan = plans_[*shape_.caches[i].pattern];
    if (position >= plan.origin()) homes_[i]->recall(plan, caches_[i], position - plan.origin(), size.rows);
  }
}

void Decoder::store_windows(const StepSize& size) {
  const std::size_t position = at(last_positions()[0]);
  for (std::size_t i = 0; i < caches_.size(); ++i) {
    if (!homes_[i]) continue;
    const WindowPlan& plan = plans_[*shape_.caches[i].pattern];
    if (position >= plan.origin()) homes_[i]->store(plan, caches_[i], position - plan.origin(), size.rows);
  }
}

}  // namespace vlrt
