// Attention that sees only some of the earlier cells of a grid: exactly those are kept together in a compact
// cache, so that an engine's plain causal attention reads nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vlrt/kv_cache.h"

namespace vlrt {

// Which earlier cells each cell sees, ascending. Cells follow `origin` positions (the text), which all cells
// see; a cell always sees itself. Positions have no order in attention, so neither has a cache's content.
struct WindowPattern {
  std::string name;
  std::size_t origin = 0;
  std::vector<std::vector<std::int32_t>> visible;
};

// What must move in a compact cache before each cell is written. Slot s is position origin + s of the cache;
// the cells that cell i sees are in slots [0, seen(i)) and i itself is written behind them. Cells that leave
// and return wait in a home of their own. Everything is planned once, since cells follow each other.
class WindowPlan {
 public:
  struct Run {
    bool recalled;  // from the home, else from another slot
    std::size_t source, destination, count;
  };

  explicit WindowPlan(const WindowPattern& pattern);

  std::size_t origin() const { return origin_; }
  std::size_t cells() const { return steps_.size(); }
  std::size_t positions() const { return origin_ + slots_; }  // of a compact cache
  std::size_t homes() const { return homes_; }
  std::size_t seen(std::size_t cell) const { return steps_[cell].seen; }
  std::span<const Run> runs(std::size_t cell) const { return steps_[cell].runs; }
  std::optional<std::size_t> home(std::size_t cell) const { return steps_[cell].home; }

  // Positions of the compact cache in use when `length` positions of the sequence are filled.
  std::size_t filled(std::size_t length) const {
    return length <= origin_ ? length : origin_ + seen(length - origin_ - 1) + 1;
  }

 private:
  struct Step {
    std::size_t seen = 0;
    std::vector<Run> runs;
    std::optional<std::size_t> home;
  };
  void number_homes(const std::vector<std::vector<std::int32_t>>& recalls);

  std::size_t origin_;
  std::size_t slots_ = 0;
  std::size_t homes_ = 0;
  std::vector<Step> steps_;
};

// The cells of one cache that wait until they are seen again. Copies are of single rows' positions.
class WindowHome {
 public:
  WindowHome(const WindowPlan& plan, const KvShape& compact);

  // Brings what `cell` sees into the first `rows` rows of the compact cache, before it is written there.
  void recall(const WindowPlan& plan, KvCache& compact, std::size_t cell, std::size_t rows);
  // Keeps `cell`, just written, where it will be wanted again.
  void store(const WindowPlan& plan, const KvCache& compact, std::size_t cell, std::size_t rows);
  // Rows change their parents; `lengths` are filled positions of the sequence.
  void apply(const WindowPlan& plan, std::span<const RowMove> moves, std::span<const std::int32_t> lengths);

 private:
  std::optional<KvCache> waiting_;
  std::vector<std::int32_t> lengths_;
};

}  // namespace vlrt
