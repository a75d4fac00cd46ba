// The operator `Linear`: y = act(X W + bias) + residual.
#include "linear_f32.h"
#include "linear_node.h"
#include "operators.h"

namespace vlrt::ort {
namespace {

class Linear {
 public:
  static constexpr const char* kName = "Linear";
  static constexpr Input kInputs[] = {
      {Element::f32}, {Element::f32}, {Element::f32, Presence::optional}, {Element::f32, Presence::optional}};
  static constexpr int kResidual = 3;

  explicit Linear(const Setup& setup)
      : node_(setup, 2),
        weights_(setup, {1, "W", round_up(node_.columns(), kPanel) * node_.inner(), sizeof(float), true}) {}

  void run(Run& run) const {
    const LinearNode::Call call = node_.prepare(run);
    if (call.shape.rows == 0) return;
    kernels::linear_f32(call.shape, call.x, weights_.get<float>(run), call.epilogue, call.y, run.parallel());
  }

 private:
  LinearNode node_;
  Weights weights_;
};

}  // namespace

const CustomOp* linear_op() {
  return custom_op<Linear>();
}

}  // namespace vlrt::ort
