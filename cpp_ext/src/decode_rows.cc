// How live hypotheses are laid out in rows as beams fork and images finish.
#include <algorithm>
#include <utility>

#include "vlrt/decode.h"

namespace vlrt {

namespace {

std::size_t at(std::int32_t index) {
  return static_cast<std::size_t>(index);
}

}  // namespace

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
    for (ImageMemory& memory : memory_) {
      for (std::size_t lane = 0; lane < lanes_; ++lane)
        memory.move(last * lanes_ + lane, slot * lanes_ + lane);
    }
    slots_[slot] = slots_[last];
    slots_.pop_back();
  }
}

// Every live image gets as many rows as the widest needs; beams stay in their parent's row where they can.
void Decoder::lay_out_rows() {
  const std::size_t rows_before = filled_.size(), beams_before = rows_per_image_;
  rows_per_image_ = 1;
  for (const std::int32_t image : slots_) {
    rows_per_image_ = std::max(rows_per_image_, searches_[at(image)]->beams().size());
  }
  parents_.resize(row_count());
  std::fill(taken_.begin(), taken_.end(), char{0});
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    place_beams(slot, rows_before);
    if (lanes_ == 2) place_lane(slot, rows_before, beams_before);
  }
  move_caches();
  for (RecurrentState& state : recurrent_) state.select(parents_);
  next_filled_.resize(row_count());
  for (std::size_t row = 0; row < row_count(); ++row) next_filled_[row] = filled_[at(parents_[row])];
  filled_.swap(next_filled_);
}

// A compact cache is filled as its pattern says, the others as the sequence is.
void Decoder::move_caches() {
  const auto moves = moves_.plan(parents_);
  for (ShiftedState& state : shifted_) state.apply(moves);
  for (std::size_t i = 0; i < caches_.size(); ++i) {
    if (!homes_[i]) {
      caches_[i].apply(moves, filled_);
      continue;
    }
    const WindowPlan& plan = plans_[*shape_.caches[i].pattern];
    compact_filled_.clear();
    for (const std::int32_t length : filled_) {
      compact_filled_.push_back(static_cast<std::int32_t>(plan.filled(at(length))));
    }
    caches_[i].apply(moves, compact_filled_);
    homes_[i]->apply(plan, moves, filled_);
  }
}

void Decoder::place_beams(std::size_t slot, std::size_t rows_before) {
  const std::size_t begin = slot * rows_per_slot(), end = begin + rows_per_image_;
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

// The unconditional row of a beam continues that of the beam's parent.
void Decoder::place_lane(std::size_t slot, std::size_t rows_before, std::size_t beams_before) {
  const std::span<const Beam> beams = std::as_const(*searches_[at(slots_[slot])]).beams();
  const std::size_t begin = slot * rows_per_slot() + rows_per_image_;
  const auto lane_of = [&](const Beam& beam) {
    return parents_[at(beam.row)] + static_cast<std::int32_t>(beams_before);
  };
  for (std::size_t row = begin; row < begin + rows_per_image_; ++row) {
    parents_[row] = row < rows_before ? static_cast<std::int32_t>(row) : lane_of(beams.front());
  }
  for (const Beam& beam : beams) parents_[at(beam.row) + rows_per_image_] = lane_of(beam);
}

void Decoder::fill_tokens() {
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    const std::span<const Beam> beams = std::as_const(*searches_[at(slots_[slot])]).beams();
    for (std::size_t row = slot * rows_per_slot(); row < (slot + 1) * rows_per_slot(); ++row) {
      tokens()[row] = beams.front().token;
      new_lengths()[row] = 1;
    }
    for (const Beam& beam : beams) {
      for (std::size_t lane = 0; lane < lanes_; ++lane) {
        tokens()[at(beam.row) + lane * rows_per_image_] = beam.token;
      }
    }
  }
}

}  // namespace vlrt
