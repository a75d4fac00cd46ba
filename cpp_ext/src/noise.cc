#include "vlrt/noise.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

#include "vlrt/box_muller.h"

namespace vlrt {

namespace {

// As `box_muller`, one block.
void box_muller_double(double* block) {
  for (std::size_t i = 0; i < 8; ++i) {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - block[i]));
    const double angle = 2.0 * std::numbers::pi * block[i + 8];
    block[i] = radius * std::cos(angle);
    block[i + 8] = radius * std::sin(angle);
  }
}

}  // namespace

void TorchGenerator::seed(std::uint64_t seed) {
  state_[0] = static_cast<std::uint32_t>(seed);
  for (std::size_t i = 1; i < kState; ++i) {
    const std::uint32_t last = state_[i - 1];
    state_[i] = 1812433253u * (last ^ (last >> 30)) + static_cast<std::uint32_t>(i);
  }
  next_ = kState;
  cached_normal_.reset();
}

void TorchGenerator::refill() {
  constexpr std::size_t kShift = 397;
  const auto twist = [](std::uint32_t high, std::uint32_t low) {
    const std::uint32_t mixed = (high & 0x80000000u) | (low & 0x7fffffffu);
    return (mixed >> 1) ^ ((low & 1u) != 0 ? 0x9908b0dfu : 0u);
  };
  for (std::size_t i = 0; i < kState - kShift; ++i) {
    state_[i] = state_[i + kShift] ^ twist(state_[i], state_[i + 1]);
  }
  for (std::size_t i = kState - kShift; i < kState - 1; ++i) {
    state_[i] = state_[i + kShift - kState] ^ twist(state_[i], state_[i + 1]);
  }
  state_[kState - 1] = state_[kShift - 1] ^ twist(state_[kState - 1], state_[0]);
  next_ = 0;
}

std::uint32_t TorchGenerator::random() {
  if (next_ == kState) refill();
  std::uint32_t y = state_[next_++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

std::uint64_t TorchGenerator::random64() {
  const std::uint64_t high = random();
  return (high << 32) | random();
}

void TorchGenerator::discard(std::uint64_t count) {
  while (count > kState - next_) {
    count -= kState - next_;
    refill();
  }
  next_ += static_cast<std::size_t>(count);
}

float TorchGenerator::uniform_float() {
  return static_cast<float>(random() & ((1u << 24) - 1)) * (1.0f / (1u << 24));
}

double TorchGenerator::uniform_double() {
  return static_cast<double>(random64() & ((std::uint64_t{1} << 53) - 1)) * 0x1p-53;
}

double TorchGenerator::exponential() {
  return -std::log1p(-uniform_double());
}

void TorchGenerator::rand(std::span<float> out) {
  for (float& value : out) value = uniform_float();
}

void TorchGenerator::rand(std::span<double> out) {
  for (double& value : out) value = uniform_double();
}

double TorchGenerator::normal_double() {
  if (cached_normal_) {
    const double value = *cached_normal_;
    cached_normal_.reset();
    return value;
  }
  const double angle = 2.0 * std::numbers::pi * uniform_double();
  const double radius = std::sqrt(-2.0 * std::log1p(-uniform_double()));
  cached_normal_ = radius * std::sin(angle);
  return radius * std::cos(angle);
}

// A ragged end is drawn again as a whole last block, as torch does.
void TorchGenerator::normal_fill(std::span<float> out) {
  rand(out);
  box_muller(out);
  if (out.size() % 16 == 0) return;
  rand(out.last(16));
  box_muller(out.last(16));
}

void TorchGenerator::normal_fill(std::span<double> out) {
  rand(out);
  for (std::size_t begin = 0; begin + 16 <= out.size(); begin += 16) box_muller_double(&out[begin]);
  if (out.size() % 16 == 0) return;
  rand(out.last(16));
  box_muller_double(&out[out.size() - 16]);
}

void TorchGenerator::randn(std::span<float> out) {
  if (out.size() >= 16) return normal_fill(out);
  for (float& value : out) value = static_cast<float>(normal_double());
}

void TorchGenerator::randn(std::span<double> out) {
  if (out.size() >= 16) return normal_fill(out);
  for (double& value : out) value = normal_double();
}

void TorchGenerator::randint(std::int64_t low, std::int64_t high, std::span<std::int64_t> out) {
  if (low >= high) throw std::invalid_argument("randint needs low < high");
  const std::uint64_t range = static_cast<std::uint64_t>(high) - static_cast<std::uint64_t>(low);
  for (std::int64_t& value : out) {
    const std::uint64_t draw = range >= (std::uint64_t{1} << 28) ? random64() : random();
    value = static_cast<std::int64_t>(draw % range + static_cast<std::uint64_t>(low));
  }
}

}  // namespace vlrt
