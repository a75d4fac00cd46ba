#include "linear_node.h"

#include <utility>

namespace vlrt::ort {

kernels::Activation activation_named(const std::string& name) {
  using kernels::Activation;
  static constexpr std::pair<const char*, Activation> kNames[] = {
      {"none", Activation::none},
      {"relu", Activation::relu},
      {"gelu", Activation::gelu},
      {"gelu_tanh", Activation::gelu_tanh},
      {"quick_gelu", Activation::quick_gelu},
      {"silu", Activation::silu},
  };
  for (const auto& [known, activation] : kNames) {
    if (name == known) return activation;
  }
  throw Failure("unknown activation `" + name + "`");
}

LinearNode::LinearNode(const Setup& setup, std::size_t bias)
    : inner_(setup.size("inner")),
      columns_(setup.size("columns")),
      residual_(bias + 1),
      activation_(activation_named(setup.text("activation"))),
      bias_(setup, {bias, "bias", columns_, sizeof(float)}) {}

LinearNode::Call LinearNode::prepare(Run& run) const {
  const Tensor x = run.input(0);
  if (x.shape.rank == 0 || x.shape.last() != static_cast<std::int64_t>(inner_)) {
    throw Failure("X is " + x.shape.text() + ", expected [..., " + std::to_string(inner_) + "]");
  }
  Shape y = x.shape;
  y.sizes[y.rank - 1] = static_cast<std::int64_t>(columns_);
  const kernels::Epilogue epilogue{bias_.get<float>(run), residual(run, y), activation_};
  return {{x.shape.count() / inner_, inner_, columns_}, x.floats(), epilogue, run.output(y)};
}

const float* LinearNode::residual(const Run& run, const Shape& y) const {
  const Tensor found = run.input(residual_);
  if (found.data == nullptr) return nullptr;
  if (found.shape.count() != y.count() || found.shape.last() != y.last()) {
    throw Failure("the residual is " + found.shape.text() + ", expected " + y.text());
  }
  return found.floats();
}

}  // namespace vlrt::ort
