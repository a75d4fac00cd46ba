// What the products have in common as operators: sizes, activation, bias, residual.
#pragma once

#include <string>

#include "linear_f32.h"
#include "operator.h"

namespace vlrt::ort {

// Columns that are packed together.
inline constexpr std::size_t kPanel = 16;

// Throws `Failure` where there is none.
kernels::Activation activation_named(const std::string& name);

inline std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

// The part of a product's node that does not depend on how its weights are stored.
class LinearNode {
 public:
  // `bias`: the index of the bias; the residual follows it.
  LinearNode(const Setup& setup, std::size_t bias);

  std::size_t inner() const { return inner_; }
  std::size_t columns() const { return columns_; }

  // X [..., inner] and what becomes of it: y [..., columns], already claimed from the run.
  struct Call {
    kernels::LinearShape shape;
    const float* x;
    kernels::Epilogue epilogue;
    float* y;
  };
  Call prepare(Run& run) const;

 private:
  const float* residual(const Run& run, const Shape& y) const;

  std::size_t inner_, columns_, residual_;
  kernels::Activation activation_;
  Weights bias_;
};

}  // namespace vlrt::ort
