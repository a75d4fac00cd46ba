// Random numbers as torch's CPU generator draws them: the same seed gives the same noise.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace vlrt {

// Mersenne Twister (Matsumoto & Nishimura 1998, MT19937) with the conversions of `torch.Generator` on the CPU
// (torch 2.13): `rand`, `randint` and blocks of single-precision normals bit for bit, the other normals and
// exponentials to the last digits of log and cosine.
class TorchGenerator {
 public:
  explicit TorchGenerator(std::uint64_t seed = 0) { this->seed(seed); }

  // As `torch.manual_seed`; the low 32 bits count.
  void seed(std::uint64_t seed);

  std::uint32_t random();
  std::uint64_t random64();  // two draws, the first in the high half
  // Forgets `count` 32-bit draws.
  void discard(std::uint64_t count);

  float uniform_float();    // 24 bits in [0, 1)
  double uniform_double();  // 53 bits in [0, 1)
  double exponential();     // mean 1

  void rand(std::span<float> out);
  void rand(std::span<double> out);
  // `torch.randn`: from 16 elements on torch draws in blocks of 16, below that one by one, in double, keeping
  // every second normal for the next call.
  void randn(std::span<float> out);
  void randn(std::span<double> out);
  // `torch.randint(low, high, …)`. Throws std::invalid_argument where low >= high.
  void randint(std::int64_t low, std::int64_t high, std::span<std::int64_t> out);

 private:
  static constexpr std::size_t kState = 624;
  void refill();
  double normal_double();
  void normal_fill(std::span<float> out);
  void normal_fill(std::span<double> out);

  std::array<std::uint32_t, kState> state_{};
  std::size_t next_ = kState;
  std::optional<double> cached_normal_;
};

}  // namespace vlrt
