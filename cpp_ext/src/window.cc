#include "vlrt/window.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace vlrt {

namespace {

using Cells = std::vector<std::int32_t>;

std::size_t at(std::int32_t index) {
  return static_cast<std::size_t>(index);
}

void check(const Cells& visible, std::size_t cell) {
  for (std::size_t i = 0; i < visible.size(); ++i) {
    const std::int32_t previous = i == 0 ? -1 : visible[i - 1];
    if (visible[i] <= previous || at(visible[i]) >= cell) {
      throw std::invalid_argument("a cell's visible cells must be earlier ones in ascending order");
    }
  }
}

// The slots after room was made: cells that are seen and lie below `seen` stay, the others fill the gaps.
struct Slots {
  Cells held;
  std::vector<std::pair<std::size_t, std::size_t>> shifted;  // slot to slot
  std::vector<std::pair<std::int32_t, std::size_t>> wanted;  // cell to slot
};

Slots arrange(const Cells& held, const Cells& visible) {
  Slots next;
  const std::size_t seen = visible.size();
  next.held.assign(seen, -1);
  Cells missing = visible;
  for (std::size_t slot = 0; slot < std::min(seen, held.size()); ++slot) {
    const auto found = std::find(missing.begin(), missing.end(), held[slot]);
    if (found == missing.end()) continue;
    next.held[slot] = held[slot];
    missing.erase(found);
  }
  std::size_t gap = 0;
  for (const std::int32_t cell : missing) {
    while (next.held[gap] != -1) ++gap;
    next.held[gap] = cell;
    const auto place = std::find(held.begin(), held.end(), cell);
    if (place == held.end()) {
      next.wanted.emplace_back(cell, gap);
    } else {
      next.shifted.emplace_back(static_cast<std::size_t>(place - held.begin()), gap);
    }
  }
  return next;
}

// Neighbours that stay neighbours are one copy.
void append(std::vector<WindowPlan::Run>& runs, const WindowPlan::Run& run) {
  if (!runs.empty() && runs.back().recalled == run.recalled &&
      runs.back().source + runs.back().count == run.source &&
      runs.back().destination + runs.back().count == run.destination) {
    runs.back().count += run.count;
  } else {
    runs.push_back(run);
  }
}

}  // namespace

WindowPlan::WindowPlan(const WindowPattern& pattern)
    : origin_(pattern.origin), steps_(pattern.visible.size()) {
  std::vector<std::vector<std::pair<std::int32_t, std::size_t>>> wanted(steps_.size());
  std::vector<Cells> recalls(steps_.size());
  Cells held;
  for (std::size_t cell = 0; cell < steps_.size(); ++cell) {
    const Cells& visible = pattern.visible[cell];
    check(visible, cell);
    Slots next = arrange(held, visible);
    steps_[cell].seen = visible.size();
    for (const auto& [source, destination] : next.shifted) {
      append(steps_[cell].runs, {false, source, destination, 1});
    }
    for (const auto& [wait, slot] : next.wanted) recalls[cell].push_back(wait);
    wanted[cell] = std::move(next.wanted);
    held = std::move(next.held);
    held.push_back(static_cast<std::int32_t>(cell));
    slots_ = std::max(slots_, held.size());
  }
  number_homes(recalls);
  for (std::size_t cell = 0; cell < steps_.size(); ++cell) {
    for (const auto& [wait, slot] : wanted[cell]) {
      append(steps_[cell].runs, {true, *steps_[at(wait)].home, slot, 1});
    }
  }
}

// Cells that are last recalled together lie together: a column is one copy.
void WindowPlan::number_homes(const std::vector<Cells>& recalls) {
  std::vector<std::pair<std::size_t, std::size_t>> last;  // last recall, cell
  std::vector<char> numbered(steps_.size());
  for (std::size_t cell = recalls.size(); cell-- > 0;) {
    for (const std::int32_t wait : recalls[cell]) {
      if (std::exchange(numbered[at(wait)], char{1}) == 0) last.emplace_back(cell, at(wait));
    }
  }
  std::sort(last.begin(), last.end());
  for (const auto& [recall, cell] : last) steps_[cell].home = homes_++;
}

WindowHome::WindowHome(const WindowPlan& plan, const KvShape& compact) {
  lengths_.reserve(compact.max_rows);
  if (plan.homes() == 0) return;
  KvShape shape = compact;
  shape.max_length = plan.homes();
  waiting_.emplace(shape);
}

void WindowHome::recall(const WindowPlan& plan, KvCache& compact, std::size_t cell, std::size_t rows) {
  for (const WindowPlan::Run& run : plan.runs(cell)) {
    const KvCache& source = run.recalled ? *waiting_ : compact;
    const std::size_t from = run.recalled ? run.source : plan.origin() + run.source;
    const std::size_t to = plan.origin() + run.destination;
    for (std::size_t row = 0; row < rows; ++row) compact.copy_positions(source, row, from, to, run.count);
  }
}

void WindowHome::store(const WindowPlan& plan, const KvCache& compact, std::size_t cell, std::size_t rows) {
  const std::optional<std::size_t> home = plan.home(cell);
  if (!home) return;
  const std::size_t from = plan.origin() + plan.seen(cell);
  for (std::size_t row = 0; row < rows; ++row) waiting_->copy_positions(compact, row, from, *home, 1);
}

void WindowHome::apply(const WindowPlan& plan, std::span<const RowMove> moves,
                       std::span<const std::int32_t> lengths) {
  if (!waiting_) return;
  lengths_.clear();
  for (const std::int32_t length : lengths) {
    // Homes do not fill from the front.
    lengths_.push_back(at(length) > plan.origin() ? static_cast<std::int32_t>(plan.homes()) : 0);
  }
  waiting_->apply(moves, lengths_);
}

}  // namespace vlrt
