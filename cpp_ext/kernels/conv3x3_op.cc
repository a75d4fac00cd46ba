// The operator `Conv3x3`: Y = act(conv(X, W) + bias + shift + residual), stride 1, padding 1.
#include "conv3x3.h"
#include "linear_node.h"
#include "operator.h"
#include "operators.h"

namespace vlrt::ort {
namespace {

class Conv3x3 {
 public:
  static constexpr const char* kName = "Conv3x3";
  static constexpr Input kInputs[] = {{Element::f32},
                                      {Element::f32},
                                      {Element::f32, Presence::optional},
                                      {Element::f32, Presence::optional},
                                      {Element::f32, Presence::optional}};
  static constexpr int kResidual = 4;

  explicit Conv3x3(const Setup& setup)
      : inputs_(setup.size("in_channels")),
        outputs_(setup.size("out_channels")),
        activation_(activation_named(setup.text("activation"))),
        weights_(setup, {1, "W", round_up(outputs_, kPanel) * inputs_ * 9, sizeof(float), true}),
        bias_(setup, {2, "bias", outputs_, sizeof(float)}) {}

  void run(Run& run) const {
    const Tensor x = run.input(0), shift = run.input(3), residual = run.input(4);
    if (x.shape.rank != 4 || x.shape.sizes[1] != static_cast<std::int64_t>(inputs_)) {
      throw Failure("X is " + x.shape.text() + ", expected [N, " + std::to_string(inputs_) + ", H, W]");
    }
    Shape y = x.shape;
    y.sizes[1] = static_cast<std::int64_t>(outputs_);
    const auto size = [&x](std::size_t axis) { return static_cast<std::size_t>(x.shape.sizes[axis]); };
    const kernels::ConvShape shape{size(0), inputs_, outputs_, size(2), size(3)};
    if (shift.data != nullptr) check(shift, shape.batch * outputs_, "shift", y);
    if (residual.data != nullptr) check(residual, y.count(), "residual", y);
    float* to = run.output(y);
    if (y.count() == 0) return;
    kernels::conv3x3_f32(shape, x.floats(), weights_.get<float>(run),
                         {bias_.get<float>(run), shift.floats(), residual.floats(), activation_}, to,
                         run.parallel());
  }

 private:
  static void check(const Tensor& added, std::size_t count, const char* name, const Shape& y) {
    if (added.shape.count() == count) return;
    throw Failure(std::string("the ") + name + " is " + added.shape.text() + ", Y is " + y.text());
  }

  std::size_t inputs_, outputs_;
  kernels::Activation activation_;
  Weights weights_, bias_;
};

}  // namespace

const CustomOp* conv3x3_op() {
  return custom_op<Conv3x3>();
}

}  // namespace vlrt::ort
