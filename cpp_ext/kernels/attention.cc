#include "attention.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <vector>

#include "attention_few.h"
#include "attention_threads.h"
#include "attention_tile.h"
#include "scratch.h"

namespace vlrt::kernels {

namespace {

thread_local Scratch scratch;

void attend_few(const AttentionShape& shape, const Attended& attended, const Parallel& parallel) {
  const std::size_t heads = shape.batch * shape.heads;
  const std::size_t tasks = tasks_for(heads, heads * shape.keys * (shape.width + shape.value_width));
  run_all(parallel, tasks, [&](std::size_t task) {
    float* const room = scratch.room(few_scratch(shape));
    for (std::size_t i = task * heads / tasks; i < (task + 1) * heads / tasks; ++i) {
      attend_few_avx512(shape, attended, i / shape.heads, i % shape.heads, room);
    }
  });
}

// Hands out pieces of work: the queries of a head in several parts. A thread that has packed a head goes on
// with it while there are parts, then takes a fresh one, then helps with another's.
class Pieces {
 public:
  struct Piece {
    std::size_t head, part;
  };

  Pieces(std::size_t heads, std::size_t parts) : parts_(parts), taken_(heads) {}

  std::optional<Piece> next(std::optional<std::size_t> packed) {
    if (packed) {
      if (const auto piece = part_of(*packed)) return piece;
    }
    for (std::size_t head = fresh_++; head < taken_.size(); head = fresh_++) {
      if (const auto piece = part_of(head)) return piece;
    }
    for (std::size_t head = taken_.size(); head-- > 0;) {
      if (const auto piece = part_of(head)) return piece;
    }
    return std::nullopt;
  }

 private:
  std::optional<Piece> part_of(std::size_t head) {
    if (taken_[head] >= parts_) return std::nullopt;
    const std::size_t part = taken_[head]++;
    return part < parts_ ? std::optional<Piece>({head, part}) : std::nullopt;
  }

  std::size_t parts_;
  std::vector<std::atomic<std::size_t>> taken_;
  std::atomic<std::size_t> fresh_{0};
};

// Which head lies packed in a thread's scratch.
struct Packed {
  std::size_t call = 0, head = 0;
};

thread_local Packed packed_here;

std::size_t next_call() {
  static std::atomic<std::size_t> calls{0};
  return ++calls;
}

// All tiles of many queries.
class Many {
 public:
  Many(const AttentionShape& shape, const Attended& attended)
      : shape_(shape),
        attended_(attended),
        vectors_((shape.queries + 15) / 16),
        tiles_((vectors_ + kTileVectors - 1) / kTileVectors),
        // Enough pieces that no thread waits long for the last one.
        parts_(std::min(tiles_, (kPieces + heads() - 1) / heads())),
        pieces_(heads(), parts_),
        call_(next_call()) {}

  void run(const Parallel& parallel) {
    run_all(parallel, heads() * parts_, [this](std::size_t) { work(); });
  }

 private:
  static constexpr std::size_t kPieces = 64;

  std::size_t heads() const { return shape_.batch * shape_.heads; }

  void work() {
    const bool known = packed_here.call == call_;
    const auto piece = pieces_.next(known ? std::optional(packed_here.head) : std::nullopt);
    if (!piece) return;
    const std::size_t keys = rounded_up(shape_.keys, kInterleaved) * shape_.width;
    const std::size_t values = shape_.keys * rounded_up(shape_.value_width, kInterleaved);
    const std::size_t query = shape_.width * kTileQueries;
    const std::size_t block = std::min(kBlockKeys, shape_.keys) * kTileQueries;
    const std::size_t sums = rounded_up(shape_.value_width, kInterleaved) * kTileQueries;
    float* const room = scratch.room(query + 2 * block + sums + keys + values);
    const TileScratch tile{room, room + query, room + query + block, room + query + 2 * block};
    const PackedHead packed{tile.sums + sums, tile.sums + sums + keys};
    const std::size_t batch = piece->head / shape_.heads, head = piece->head % shape_.heads;
    if (!known || packed_here.head != piece->head) {
      pack_head(shape_, attended_, batch, head, packed);
      packed_here = {call_, piece->head};
    }
    for (std::size_t i = piece->part * tiles_ / parts_; i < (piece->part + 1) * tiles_ / parts_; ++i) {
      const std::size_t first = 16 * (i * vectors_ / tiles_);
      const std::size_t past = std::min(shape_.queries, 16 * ((i + 1) * vectors_ / tiles_));
      attend_tile(shape_, attended_, {batch, head, first, past - first}, packed, tile);
    }
  }

  const AttentionShape& shape_;
  const Attended& attended_;
  std::size_t vectors_, tiles_, parts_;
  Pieces pieces_;
  std::size_t call_;
};

}  // namespace

void attention_f32(const AttentionShape& shape, const Attended& attended, const Parallel& parallel) {
  if (shape.batch * shape.heads * shape.queries == 0) return;
  if (shape.queries <= kFewQueries && reads_in_place(attended)) {
    attend_few(shape, attended, parallel);
  } else {
    Many(shape, attended).run(parallel);
  }
}

}  // namespace vlrt::kernels
